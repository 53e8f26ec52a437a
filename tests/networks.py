"""Networks that the tests of structured pruning share: one small one of each family, with nothing right by chance."""

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from pruninglab import prune
from pruninglab.batches import call
from pruninglab.graph import GraphError, trace
from pruninglab.surgery import emptied, slim

WORDS = 50


class Net(nn.Module):
    """Modules by name, and a function of (self, x) as the forward."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.run(self, *inputs)


class Attention(nn.Module):
    """Attention as decoders write it: from `width` channels, `heads` of queries, `keys` of keys and values."""

    def __init__(self, width: int, heads: int, keys: int, size: int) -> None:
        super().__init__()
        self.heads, self.keys, self.size = heads, keys, size
        self.q = nn.Linear(width, heads * size, bias=False)
        self.k = nn.Linear(width, keys * size, bias=False)
        self.v = nn.Linear(width, keys * size, bias=False)
        self.o = nn.Linear(heads * size, width, bias=False)

    def forward(self, x):
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(n, t, self.keys, self.size).transpose(1, 2) for f in (self.k, self.v))
        if self.keys < self.heads:
            wide = (n, self.keys, self.heads // self.keys, t, self.size)
            k, v = (a[:, :, None].expand(wide).reshape(n, self.heads, t, self.size) for a in (k, v))
        y = (q @ k.mT * self.size**-0.5).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, t, self.heads * self.size))


# ── torchvision ───────────────────────────────────────────────────────────────────────────────────────────────────


def by_name(name: str, **options):
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def _swin_v2():
    later = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10, **later)


VISION = {
    "resnet18": (by_name("resnet18"), 32),
    "resnext50_32x4d": (by_name("resnext50_32x4d"), 32),
    "mobilenet_v3_small": (by_name("mobilenet_v3_small"), 64),
    "shufflenet_v2_x0_5": (by_name("shufflenet_v2_x0_5"), 64),
    "densenet121": (by_name("densenet121"), 32),
    "efficientnet_b0": (by_name("efficientnet_b0"), 64),
    "regnet_y_400mf": (by_name("regnet_y_400mf"), 32),
    "googlenet": (by_name("googlenet", init_weights=False), 64),
    "squeezenet1_0": (by_name("squeezenet1_0"), 64),
    "mnasnet0_5": (by_name("mnasnet0_5"), 64),
    "convnext_tiny": (by_name("convnext_tiny"), 32),
    "vision transformer": (lambda: VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10), 32),
    "swin": (lambda: SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10), 32),
    "swin v2": (_swin_v2, 32),
    "maxvit": (lambda: MaxVit((64, 64), 16, 4, [16, 32], [1, 2], 8, 0.0, num_classes=10), 64),
}


def vision(name: str, batch: int = 4) -> tuple[nn.Module, Tensor]:
    """A network of float64, and a batch of noise."""
    make, size = VISION[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(batch, 3, size, size).double()
    randomize(model, x)
    return model, x


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _llama(t):
    return t.LlamaForCausalLM(t.LlamaConfig(**DECODER))


def _qwen3(t):
    return t.Qwen3ForCausalLM(t.Qwen3Config(**DECODER, head_dim=8))


def _gpt2(t):
    small = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    config = t.GPT2Config(**small, bos_token_id=0, eos_token_id=0)
    return t.GPT2LMHeadModel(config)


def _opt(t):
    small = {"vocab_size": WORDS, "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32}
    more = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
    return t.OPTForCausalLM(t.OPTConfig(**small, **more))


def _bert(t):
    small = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 16}
    config = t.BertConfig(**small, num_hidden_layers=2, num_attention_heads=4, num_labels=3)
    return t.BertForSequenceClassification(config)


def _t5(t):
    small = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = t.T5Config(**small)
    return t.T5ForConditionalGeneration(config)


def _vit(t):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = t.ViTConfig(**small, image_size=32, patch_size=8, num_labels=3)
    return t.ViTForImageClassification(config)


DECODER = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LANGUAGE = {"llama": _llama, "qwen3": _qwen3, "gpt2": _gpt2, "opt": _opt, "bert": _bert, "t5": _t5, "vit": _vit}


def language(name: str) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """A class of transformers from a small config, in float64, and two rows of random words (or two images)."""
    import transformers

    torch.manual_seed(0)
    model = LANGUAGE[name](transformers).double().eval()
    if name == "vit":
        x = {"pixel_values": torch.randn(2, 3, 32, 32).double()}
    else:
        x = {"input_ids": torch.randint(WORDS, (2, 7))}
    if name == "t5":
        x["decoder_input_ids"] = torch.randint(WORDS, (2, 5))
    randomize(model, x)
    return model, x


# ── both ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def randomize(model: nn.Module, x) -> None:
    """Random numbers for norms and for what starts as a constant; running statistics near those of a batch."""
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for name, parameter in model.named_parameters():
        noise = torch.rand(parameter.shape, generator=generator).to(parameter) - 0.5
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.copy_(1 + noise)
        elif parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.copy_(0.5 * noise)
        elif parameter.ndim == 1:
            parameter.add_(0.3 * noise)
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    call(model, x)
    for norm in norms:
        norm.momentum, norm.training = 0.1, False
        size = norm.running_mean.shape
        norm.running_mean += (
            0.2 * torch.randn(size, generator=generator).to(norm.running_mean) * norm.running_var.sqrt()
        )
        norm.running_var *= 0.5 + torch.rand(size, generator=generator).to(norm.running_var)


def tensors(outputs) -> list[Tensor]:
    """What a network says: the logits, or all tensors that it returns."""
    return [leaf for leaf in tree_leaves(getattr(outputs, "logits", outputs)) if isinstance(leaf, Tensor)]


@torch.no_grad()
def relative_error(wanted, given) -> float:
    """Largest difference over largest value. Where the network says the same of all inputs, nothing is tested."""
    worst = 0.0
    for a, b in zip(tensors(wanted), tensors(given), strict=True):
        assert a.shape == b.shape
        assert (a[0] - a[1]).abs().max() > 1e-6 * a.abs().max(), "these outputs do not depend on the inputs"
        worst = max(worst, ((a - b).abs().max() / a.abs().max()).item())
    assert worst == worst, "NaN"
    return worst


def slimmed(model: nn.Module, x, **options):
    """Pruned, by uniform halves if not told, and slimmed: the smaller model, the graph, what went, and the masks."""
    options = {"unit": "channel", "sparsity": 0.5, "allocation": "uniform"} | options
    graph = trace(model, x)
    masks = prune(model, example_inputs=graph, **options)
    small = slim(model, masks, graph)
    return small, graph, emptied(model, masks, graph), masks


def slimmed_or_refused(model: nn.Module, x):
    """The smaller model; or None, where a GraphError says what cannot be done."""
    try:
        masks = prune(model, unit="channel", sparsity=0.5, example_inputs=x)
        return slim(model, masks, x)
    except GraphError:
        return None
