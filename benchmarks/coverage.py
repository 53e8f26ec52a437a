"""Half of the channels cut out of every classification network of torchvision, and of seven classes of transformers.

    python benchmarks/coverage.py                       # all: about an hour; the table goes to results/coverage.md
    python benchmarks/coverage.py resnet18 llama swin_t # some: the table is only printed
    python benchmarks/coverage.py --save swin_t         # some: their rows are put into the table that is there

No network gets a hint. Each has a process of its own, one thread, and a limit of CPU seconds and memory, in float64.
Norms have random parameters and statistics, and what is constant at the start (biases, heads, tokens, layer scales) is
random too, so that nothing is right by chance. The smaller network must give what the masked one gives, as computed by
`tests/reference.py` without any surgery; then it is trained for one step of batch 2.
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pruninglab import prune
from pruninglab.batches import Inputs, call
from pruninglab.graph import trace
from pruninglab.surgery import emptied, slim

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from reference import masked_outputs

ASKED = 0.5
EXACT = 1e-9  # relative error that float64 allows
TOO_LARGE = 120e6  # parameters of a smaller network that is not trained here, for want of memory
SIZES = {"inception_v3": 299}  # pixels where 224 is too few: its auxiliary head
LAST = ("regnet_y_128gf", "vit_h_14")  # 630 million parameters each
CLASSES, WORDS, PIXELS = 1000, 211, 3  # widths that belong to the data
RESULTS = Path(__file__).parent / "results" / "coverage.md"
HEAD = (
    "| network | done | removed | parameters, M | relative error | trained | whole | trace, s | prune, s | slim, s "
    "| peak, GB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


# ── the networks ──────────────────────────────────────────────────────────────────────────────────────────────────


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**DECODER))


def qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=16))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=32))


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    small = {"vocab_size": WORDS, "hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}
    return OPTForCausalLM(OPTConfig(**small, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_labels": CLASSES}
    return BertForSequenceClassification(BertConfig(**small, num_hidden_layers=2, num_attention_heads=4))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**small))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=CLASSES))


DECODER = {
    "vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {f.__name__: f for f in (llama, qwen3, gpt2, opt, bert, t5, vit)}


def inputs(name: str, batch: int) -> Inputs:
    """A batch of noise, or of random words."""
    generator = torch.Generator().manual_seed(batch)
    if name not in TRANSFORMERS or name == "vit":
        size = 32 if name == "vit" else SIZES.get(name, 224)
        images = torch.randn(batch, PIXELS, size, size, generator=generator, dtype=torch.float64)
        return {"pixel_values": images} if name == "vit" else images
    words = {"input_ids": torch.randint(WORDS, (batch, 12), generator=generator)}
    if name == "t5":
        words["decoder_input_ids"] = torch.randint(WORDS, (batch, 7), generator=generator)
    return words


@torch.no_grad()
def randomize(model: nn.Module, example: Inputs) -> None:
    """Random values for norms and for what starts as a constant; statistics near those of a batch."""
    generator = torch.Generator().manual_seed(1)

    def normal(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def about_one(like: Tensor) -> Tensor:
        return 0.5 + torch.rand(like.shape, generator=generator, dtype=like.dtype)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            constant = parameter.numel() > 1 and bool(parameter.min() == parameter.max())
            if (norm and name == "weight") or (constant and parameter.flatten()[0]):
                parameter.copy_(about_one(parameter))
            elif constant or norm:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.copy_(normal(parameter, fan_in**-0.5))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    call(model, example)  # statistics from nowhere would let the signal of a deep network die or burst
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False
        norm.running_mean.add_(normal(norm.running_mean, 0.1) * norm.running_var.sqrt())
        norm.running_var.mul_(about_one(norm.running_var))


# ── one network ───────────────────────────────────────────────────────────────────────────────────────────────────


class Double(TorchFunctionMode):
    """Lets a network that turns to float32 inside (RMS norms, the softmax of attention) stay in float64."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "float":
            return args[0].double()
        args, kwargs = tree_map(lambda a: torch.float64 if a is torch.float32 else a, (args, kwargs or {}))
        return function(*args, **kwargs)


def floats(outputs: Any) -> list[Tensor]:
    """The tensors of numbers among what a network returns."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative_error(wanted: Any, given: Any) -> float:
    """Largest difference over largest value. Raises where the network says the same of both inputs: a vacuous test."""
    worst = 0.0
    # of a dictionary with logits, the hidden states in it are smaller
    both = (floats(getattr(outputs, "logits", outputs)) for outputs in (wanted, given))
    for a, b in zip(*both, strict=True):
        if not (a[0] - a[1]).abs().max() > 1e-6 * a.abs().max():
            raise AssertionError("the masked network does not look at its inputs, so this test would tell nothing")
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def widths(model: nn.Module) -> dict[str, int]:
    """How wide the inputs and the outputs of each layer are, as its weight has them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            outputs, into = module.in_proj_weight.shape
        elif isinstance(module, nn.modules.conv._ConvNd):
            outputs, into = module.weight.shape[0], module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            outputs, into = module.weight.shape
        elif isinstance(module, nn.Embedding):
            outputs, into = module.weight.shape[1], None  # a row for each word
        elif type(module).__name__ == "Conv1D":  # of transformers
            into, outputs = module.weight.shape
        else:
            continue
        found[f"{name}, outputs"] = outputs
        if into is not None:
            found[f"{name}, inputs"] = into
    return found


def still_whole(model: nn.Module, small: nn.Module, data: set[int]) -> list[str]:
    """Inputs and outputs of layers that are as wide as before, but for those whose width belongs to the data."""
    after = widths(small)
    return [side for side, width in widths(model).items() if after[side] >= width and width not in data]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def examine(name: str) -> dict[str, Any]:
    """Prune, slim, compare and train one network: a row of the table."""
    torch.manual_seed(0)
    build = TRANSFORMERS.get(name) or (lambda: torchvision.models.get_model(name, weights=None))
    model, example, x = build().double().eval(), inputs(name, 1), inputs(name, 2)
    randomize(model, x)
    data = {PIXELS, CLASSES} if name not in TRANSFORMERS else {PIXELS, CLASSES, WORDS}

    clock = [time.process_time()]
    graph = trace(model, example)
    clock.append(time.process_time())
    masks = prune(model, unit="channel", sparsity=ASKED, allocation="uniform", example_inputs=example)
    clock.append(time.process_time())
    small = slim(model, masks, example)
    clock.append(time.process_time())
    removed = emptied(model, masks, graph)
    del masks
    with Double():
        wanted = masked_outputs(model, graph, removed, x)
        with torch.no_grad():
            given = call(small.eval(), x)
    row = {
        "error": relative_error(wanted, given),
        "removed": int(removed.sum()) / sum(family.channels for family in graph.families),
        "before": count(model) / 1e6,
        "after": count(small) / 1e6,
        "whole": still_whole(model, small, data),
        "seconds": [end - start for start, end in pairwise(clock)],
        "trained": "too large",
    }
    del model, graph, wanted, given
    if count(small) <= TOO_LARGE:
        row["trained"] = train(small, x)
    return row


def train(small: nn.Module, x: Inputs) -> str:
    """One backward pass in training mode."""
    torch.stack([leaf.square().mean() for leaf in floats(call(small.train(), x))]).sum().backward()
    grads = [parameter.grad for parameter in small.parameters() if parameter.grad is not None]
    return "yes" if grads and all(bool(grad.isfinite().all()) for grad in grads) else "gradients are not finite"


# ── all of them, each in a process of its own ─────────────────────────────────────────────────────────────────────


def child(name: str, seconds: int, gigabytes: float) -> None:
    """Examine one network within limits; the last line that is printed is the row."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    if sys.platform == "linux":  # elsewhere this limit means nothing
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9),) * 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        row = examine(name)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        place = traceback.extract_tb(error.__traceback__)[-1]
        row = {"failed": f"{type(error).__name__} ({Path(place.filename).name}, {place.name}): {lines[0]}"}
        traceback.print_exc()
    unit = 1 if sys.platform == "darwin" else 1024
    row["peak"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    print("\n" + json.dumps(row))


def row_of(name: str, seconds: int, gigabytes: float) -> str:
    """One line of the table."""
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds), "--gigabytes", str(gigabytes)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=5 * seconds)
        row = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {"failed": how_it_ended(run)}
    except subprocess.TimeoutExpired:
        row = {"failed": f"still there after {5 * seconds} s"}
    return line(name, row)


def how_it_ended(run: subprocess.CompletedProcess) -> str:
    if run.returncode == -24:  # SIGXCPU
        return "stopped: too many CPU seconds"
    return f"stopped by signal {-run.returncode}" if run.returncode < 0 else run.stderr.strip().splitlines()[-1]


def line(name: str, row: dict[str, Any]) -> str:
    title = f"{name}, {SIZES[name]} px" if name in SIZES else name
    if "failed" in row:
        peak = f"{row['peak']:.1f}" if "peak" in row else ""
        return f"| {title} | **no** | {row['failed'].replace('|', '/')[:160]} | | | | | | | | {peak} |"
    done = row["error"] <= EXACT and math.isfinite(row["error"]) and row["trained"] in ("yes", "too large")
    trace_s, prune_s, slim_s = (f"{t:.2f}" for t in row["seconds"])
    whole = "none"
    if row["whole"]:
        whole = f"{len(row['whole'])}: {'; '.join(row['whole'][:2])}{' …' if len(row['whole']) > 2 else ''}"
    digits = 2 if row["before"] >= 1 else 3
    return (
        f"| {title} | {'yes' if done else '**no**'} | {row['removed']:.4f} | "
        f"{row['before']:.{digits}f} → {row['after']:.{digits}f} | {row['error']:.1e} | {row['trained']} | {whole} | "
        f"{trace_s} | {prune_s} | {slim_s} | {row['peak']:.1f} |"
    )


def summary(rows: dict[str, str], names: list[str], title: str) -> list[str]:
    """A line of how many are done, and a table."""
    here = {name: rows[name] for name in sorted(names) if name in rows}
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in here.values()]
    done = [row for row in cells if row[1] == "yes"]
    complete = sum(row[6] == "none" for row in done)
    part = "" if len(here) == len(names) else f" ({len(here)} were run)"
    text = f"**{title}: {len(done)} of {len(names)} done{part}, in {complete} of them no layer stayed whole.**"
    if done:
        fractions = [float(row[2]) for row in done]
        text += f" Asked {ASKED:g} of the channels, removed {min(fractions):.4f} to {max(fractions):.4f}."
    return [text, "", *HEAD, *here.values(), ""]


def page(rows: dict[str, str]) -> str:
    vision = torchvision.models.list_models(module=torchvision.models)
    lines = [
        f"# Half of the channels of every network: torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"1 thread, {date.today()}",
        "",
        "`python benchmarks/coverage.py`: float64, images of 224 × 224 unless the row says otherwise, "
        '`prune(unit="channel", sparsity=0.5, allocation="uniform")` and `slim`, no hints. '
        f"Done: the smaller network gives what the masked one gives, to a relative error of {EXACT:g}, and a backward "
        f"pass of it in training mode has finite gradients (not tried above {TOO_LARGE / 1e6:g} M parameters). "
        "Removed: of the channels that can be. Whole: inputs or outputs of layers that are as wide as before, but for "
        "those whose width belongs to the data. Seconds are of the CPU; those of `prune` and of `slim` each include "
        "following the channels (trace) once more.",
        "",
    ]
    lines += summary(rows, vision, "torchvision")
    lines += summary(rows, list(TRANSFORMERS), "transformers, two layers of random weights")
    return "\n".join(lines)


def saved() -> dict[str, str]:
    """The rows of the table that is there."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    return {m[1]: m[0] for m in re.finditer(r"^\| (\w+)(?:, \d+ px)? \| (?:yes|\*\*no\*\*) .*$", text, re.MULTILINE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these networks")
    parser.add_argument("--save", action="store_true", help="with names: put their rows into the table that is there")
    parser.add_argument("--seconds", type=int, default=600, help="CPU seconds that one network may take")
    parser.add_argument("--gigabytes", type=float, default=20, help="memory that one network may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seconds, options.gigabytes)
        return
    every = [*TRANSFORMERS, *torchvision.models.list_models(module=torchvision.models)]
    if wrong := sorted(set(options.names) - set(every)):
        parser.error(f"unknown: {', '.join(wrong)}; known: {', '.join(every)}")
    rows = saved() if options.names and options.save else {}
    for name in options.names or sorted(every, key=lambda name: name in LAST):
        rows[name] = row_of(name, options.seconds, options.gigabytes)
        print(rows[name], flush=True)
        if options.save or not options.names:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(page(rows))
    print("\n" + page(rows))


if __name__ == "__main__":
    main()
