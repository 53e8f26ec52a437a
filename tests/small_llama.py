"""A Llama of a few thousand weights, in float64, and a task of random text to prune it with."""

import torch
from torch import nn

from pruninglab.tasks import LanguageTask, Training

WORDS = 40
SIZES = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 6}


def llama(kv: int = 4, seed: int = 0, kind: str = "Llama", **sizes) -> nn.Module:
    """A model of the Llama family; `kv` heads of keys and values. Norms and biases are random, not ones and zeros."""
    import transformers

    names = {"num_key_value_heads": kv, "vocab_size": WORDS, "use_cache": False, "bos_token_id": None}
    names |= {"eos_token_id": None, "max_position_embeddings": 64, "initializer_range": 0.2}
    config = getattr(transformers, f"{kind}Config")(**SIZES | names | sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def tokens(n: int = 6, length: int = 9, seed: int = 0):
    """Random tokens and for each of them the next, (n, length)."""
    drawn = torch.randint(WORDS, (n, length + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def language_task(kv: int = 4, **sizes) -> LanguageTask:
    """A task whose text is random; nothing can be learned from it but that."""
    splits = {name: tokens(24, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    how = Training(steps=6, batch=4, lr=1e-3, optimizer="adamw")
    return LanguageTask("small-llama", lambda: splits, lambda: llama(kv, **sizes), how)


@torch.no_grad()
def logits(model, x):
    return model(x).logits
