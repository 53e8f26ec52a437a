"""Small language models of each family that the tests prune, and text that they read."""

import torch
import transformers

from pruninglab.language import find_blocks

WORDS = 256
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON = {"vocab_size": WORDS, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": None}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
GQA = {"num_key_value_heads": 2}

FAMILIES = {
    "llama": ("Llama", SIZES | COMMON | GQA),
    "qwen2": (
        "Qwen2",
        SIZES | COMMON | GQA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "mistral": ("Mistral", SIZES | COMMON | GQA | {"sliding_window": 8}),
    "opt": (
        "OPT",
        SIZES | COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "pad_token_id": 1, "dropout": 0.3},
    ),
    "gpt2": ("GPT2", COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48}),
    "mixtral": ("Mixtral", SIZES | COMMON | GQA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def language_model(family: str, seed: int = 0, **options):
    """An untrained model in evaluation mode; the weights are large, so that no two blocks do alike."""
    name, config = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(transformers, f"{name}Config")(**config | NO_ENDS | options)
        return transformers.AutoModelForCausalLM.from_config(made).eval()


def tokens(n: int = 5, length: int = 24, seed: int = 1):
    """Random token ids, (n, length): longer than the sliding windows."""
    return torch.randint(WORDS, (n, length), generator=torch.Generator().manual_seed(seed))


def plain(folder, **options):
    """What transformers itself reads from a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model, x):
    return model(x).logits


def text(paragraphs: int = 200, seed: int = 0) -> list[str]:
    """Paragraphs of letters, no two alike."""
    letters = torch.randint(97, 123, (paragraphs, 40), generator=torch.Generator().manual_seed(seed))
    return ["".join(map(chr, row)) + f" {i}" for i, row in enumerate(letters.tolist())]


def block_names(model) -> list[str]:
    return list(find_blocks(model))
