"""Language models as tasks: what they read, how they are trained, how well they predict, and what they write.

t = task("tiny-llama")                  # a Llama of 1.3 million weights that ships trained
t.perplexity(t.trained())               # for each byte of held-out text
t = task.from_pretrained("gpt2")        # any causal language model of transformers, from a folder or the hub
"""

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.files import PACKAGE, load_tensors, save_tensors
from pruninglab.tasks import text as reading
from pruninglab.tasks.base import Task
from pruninglab.tasks.data import Splits
from pruninglab.tasks.linears import as_linear, as_published
from pruninglab.tasks.training import Training, evaluating, rows

SHIPPED = PACKAGE.parent / "data" / "tiny-llama.safetensors"
AT_A_TIME = 4096  # tokens whose logits are held at once
Windows = str | tuple[Tensor, Tensor]  # a split, or windows of another text


@dataclass(frozen=True, eq=False)
class LanguageTask(Task):
    """A task whose samples are windows of text: x are the tokens, y for each of them the next one.

    Attributes:
        encode: a text's tokens.
        decode: the text again.
        ready: makes the trained network of seed 0, where it need not be trained.
        tokenizer: what `encode` and `decode` are of, where that is more than two functions.
    """

    encode: Callable[[str], Sequence[int]] = reading.as_bytes
    decode: Callable[[Sequence[int]], str] = reading.from_bytes
    ready: Callable[[], nn.Module] | None = None
    tokenizer: Any = None
    only_ready: bool = field(default=False, kw_only=True)  # other seeds are not known

    def trained(self, seed: int = 0, *, until: float = 1.0) -> nn.Module:
        """As in `Task.trained`; seed 0 is the network that came with the task, if one did.

        Raises:
            ValueError: only one network is known, and another seed or an earlier point is asked for.
        """
        if self.ready is not None and (seed, until) == (0, 1.0):
            return self.ready()
        if self.only_ready:
            raise ValueError(f"{self.name} is one trained network: seed=0 and until=1 are all there is (seeds=[0])")
        return super().trained(seed, until=until)

    @torch.no_grad()
    def nats(self, model: nn.Module, split: Windows = "test", n: int | None = None) -> float:
        """Mean cross-entropy for each token, in nats.

        Args:
            model: a causal language model.
            split: "test", "validation" or "train", or windows of another text, (x, y).
            n: only so many windows, spread evenly over the split.

        Raises:
            ValueError: an unknown split, n below 1, or tokens that the model does not know.
        """
        total, tokens = 0.0, 0
        for logits, targets in self._logits(model, split, n):
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            tokens += len(targets)
        return total / tokens

    def perplexity(self, model: nn.Module, split: Windows = "test", n: int | None = None) -> float:
        """The exponential of the mean cross-entropy: among how many equally likely tokens the model hesitates."""
        return math.exp(min(self.nats(model, split, n), 700.0))

    def bits_per_byte(self, model: nn.Module, split: Windows = "test", n: int | None = None) -> float:
        """Cross-entropy in bits for each byte of the text, so that models with unlike tokens can be compared."""
        _, y = self.windows(split, n)
        length = len(self.decode(y.flatten().tolist()).encode()) / y.numel()
        return self.nats(model, split, n) / math.log(2) / length

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: Windows = "test", n: int | None = None) -> float:
        """The fraction of tokens that the model holds for the likeliest; arguments as in `nats`."""
        right, tokens = 0, 0
        for logits, targets in self._logits(model, split, n):
            right += int((logits.argmax(1) == targets).sum())
            tokens += len(targets)
        return right / tokens

    def windows(self, split: Windows, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The windows of a split, or those given; n of them, evenly spread, if not all."""
        x, y = split if isinstance(split, tuple) else self._split(split)
        if n is not None and n < 1:
            raise ValueError(f"n is a number of windows, at least 1, not {n}")
        if n is not None and n < len(x):
            index = torch.linspace(0, len(x) - 1, n).long()
            x, y = x[index], y[index]
        return x, y

    def _logits(self, model: nn.Module, split: Windows, n: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (tokens, vocabulary) and what they should predict (tokens), piece by piece."""
        x, y = self.windows(split, n)
        _check(model, x)
        device, size = next(model.parameters()).device, max(1, AT_A_TIME // x.shape[1])
        with evaluating(model):
            for inputs, targets in zip(x.split(size), y.split(size), strict=True):
                yield rows(model(inputs.to(device))).float(), targets.flatten().to(device)

    @torch.no_grad()
    def generate(
        self, model: nn.Module, prompt: str, n: int = 100, temperature: float = 0.0, seed: int = 0, memory: int = 128
    ) -> str:
        """The prompt, gone on with n tokens.

        Args:
            model: a causal language model.
            prompt: what it goes on from; at least one token.
            n: how many tokens.
            temperature: 0 takes the likeliest token each time; more draws, the more freely the higher it is.
            seed: of the draws.
            memory: how many tokens back the model looks.

        Raises:
            ValueError: an empty prompt, tokens that the model does not know, or a negative temperature.
        """
        tokens = list(self.encode(prompt))
        if not tokens:
            raise ValueError("the prompt must have at least one token")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {temperature}")
        _check(model, torch.tensor(tokens), "prompt")
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        with evaluating(model):
            for _ in range(n):
                logits = rows(model(torch.tensor([tokens[-memory:]], device=device)))[-1].float().cpu()
                if temperature:
                    tokens.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)))
                else:
                    tokens.append(int(logits.argmax()))
        return self.decode(tokens)

    def save(self, model: nn.Module, folder: str | os.PathLike[str]) -> None:
        """Write a model of transformers, as its own `from_pretrained` reads it, and its tokenizer; it stays as it is.

        Raises:
            TypeError: the model is not one of transformers.
        """
        if not hasattr(model, "save_pretrained"):
            raise TypeError(f"only models of transformers are saved in its format, not a {type(model).__name__}")
        shared = {id(parameter): parameter for parameter in model.parameters()}  # so that no weight is held twice
        published: Any = as_published(copy.deepcopy(model, shared))
        published.config.use_cache = True  # as it was: whoever reads it may want to generate with it
        published.save_pretrained(folder)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)


def _check(model: nn.Module, tokens: Tensor, what: str = "data") -> None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if isinstance(embeddings, nn.Embedding):
        reading.check_tokens(tokens, embeddings.num_embeddings, what)


def tiny_llama() -> nn.Module:
    """An untrained Llama that reads bytes: 6 blocks of width 128 with 8 heads, about 1.3 million weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def shipped() -> nn.Module:
    """The trained tiny Llama of seed 0: from the file that ships, or trained now (minutes) where that is missing."""
    from pruninglab.tasks import task

    home = task("tiny-llama")
    try:
        model = home.model(0)
        model.load_state_dict(load_tensors(SHIPPED)[0])
        return model
    except FileNotFoundError:
        pass
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{SHIPPED.name} is broken, so the network is trained anew ({error})", stacklevel=3)
    return Task.trained(home, 0)


def ship(path: Path = SHIPPED) -> None:
    """Train the tiny Llama of seed 0 and write it to the file that ships (some minutes on two cores)."""
    from pruninglab.tasks import task

    home = task("tiny-llama")
    model = home.model(0)
    home.train(model, seed=0, label="training the tiny Llama")
    save_tensors(path, model.state_dict(), {"made by": "python -m pruninglab tiny-llama", "seed": "0"})


def documentation() -> Splits:
    """Windows of 128 bytes of Python's documentation."""
    return reading.splits(reading.split(reading.documentation()), reading.as_bytes)


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    text: str | os.PathLike[str] | Mapping[str, str] | None = None,
    *,
    length: int | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> LanguageTask:
    """A causal language model of transformers as a task. Safetensors only, and no code from elsewhere is run.

    Its layers are ordinary `Linear` ones afterwards, also where GPT-2 or a mixture of experts packs them otherwise
    (see `linears`). It is read when it is first asked for, and again each time: `trained()` is a fresh one.

    Args:
        name_or_path: a folder, or a name on the Hugging Face hub (which needs a network once).
        text: to calibrate and to measure with: a text, a file, or split → text; Python's documentation if not given.
        length: tokens of a window; 512 if not given, or fewer where the model knows no more positions.
        tokenizer: something with `encode` and `decode`, or where to find one; that of the model if not given. "bytes"
            for UTF-8 bytes.
        options: for `AutoModelForCausalLM.from_pretrained`, such as `dtype=torch.bfloat16`.

    Raises:
        RuntimeError: the model or its tokenizer cannot be had; says why.
        ValueError: a text too short, windows too long, or tokens that the model does not know.
    """
    where = os.fspath(name_or_path)
    config = _config(where).get_text_config()
    known, positions = config.vocab_size, getattr(config, "max_position_embeddings", None) or 512
    length = min(512, positions) if length is None else length
    if length > positions:
        raise ValueError(f"windows of {length} tokens are too long: {where!r} knows {positions} positions")
    texts, tokens = _texts(text), _tokenizer(where, tokenizer)
    encode, decode = (reading.as_bytes, reading.from_bytes) if tokens == "bytes" else (tokens.encode, tokens.decode)

    def load() -> nn.Module:
        from transformers import AutoModelForCausalLM

        given = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": False} | options
        return _ready(_had(lambda: AutoModelForCausalLM.from_pretrained(where, **given), f"model {where!r}"))

    def build() -> nn.Module:
        from transformers import AutoModelForCausalLM

        return _ready(AutoModelForCausalLM.from_config(_config(where), trust_remote_code=False))

    def read() -> Splits:
        found = reading.splits(texts, encode, length)
        for name, windows in found.items():
            reading.check_tokens(torch.cat(windows), known, f"{name} text")
        return found

    how = Training(steps=200, batch=8, lr=1e-4, momentum=0.9, weight_decay=0.0, optimizer="adamw", warmup=0.1, clip=1.0)
    return LanguageTask(where, read, build, how, encode, decode, load, tokens, only_ready=True)


def _config(where: str) -> Any:
    from transformers import AutoConfig

    return _had(
        lambda: AutoConfig.from_pretrained(where, trust_remote_code=False), f"model {where!r}"
    ).get_text_config()


def _texts(given: str | os.PathLike[str] | Mapping[str, str] | None) -> Mapping[str, str]:
    if isinstance(given, Mapping):
        missing = {"train", "validation", "test"} - set(given)
        if missing:
            raise ValueError(
                f"text as a mapping needs train, validation and test; {', '.join(sorted(missing))} missing"
            )
        return given
    if given is None:
        given = reading.documentation()
    elif not isinstance(given, str) or "\n" not in given:  # one paragraph would be no text to split
        if not os.path.isfile(given):
            raise ValueError(f"text={os.fspath(given)[:80]!r} is neither a file nor a text of several paragraphs")
        given = Path(given).read_text(encoding="utf-8")
    return reading.split(given)


def _tokenizer(where: str, tokenizer: Any) -> Any:
    if tokenizer == "bytes" or not (tokenizer is None or isinstance(tokenizer, (str, os.PathLike))):
        return tokenizer
    from transformers import AutoTokenizer

    place = where if tokenizer is None else os.fspath(tokenizer)
    return _had(lambda: AutoTokenizer.from_pretrained(place, trust_remote_code=False), f"tokenizer of {place!r}")


def _had(get: Callable[[], Any], what: str) -> Any:
    from safetensors import SafetensorError

    try:
        return get()
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        why = " ".join(str(error).split())
        raise RuntimeError(
            f"the {what} cannot be had ({type(error).__name__}: {why}). A name on the hub needs a network once; "
            "a folder needs config.json, *.safetensors and a tokenizer (or tokenizer='bytes')"
        ) from error


def _ready(model: nn.Module) -> nn.Module:
    model.config.use_cache = False  # type: ignore[union-attr]
    return as_linear(model).eval()
