"""SliceGPT: turn the stream of a language model so that its last directions say little, and leave those out.

    masks = slice_stream(model, x, width=96)     # in place
    small = slim(model, masks, x[:1])

An RMS norm divides by the length of what it gets, which no rotation changes. So with an orthogonal Q the stream may be
XQ instead of X, if all that reads it uses WQ and all that writes it QᵀW (Ashkboos et al. 2024, §3.2). Every stretch of
the stream, before attention and after it, gets the Q of its own principal components. From a stretch with Q to one with
Q', the shortcut around attention or the layers after it has to turn: it is multiplied by QᵀQ'. Leaving out all but the
first columns of each Q makes the stream narrower everywhere, with one small matrix more for each shortcut.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.language.blocks import CHUNK, Block, find_blocks, walk
from pruninglab.masks import Masks
from pruninglab.naming import lookup, whole

PARTS = {"input_layernorm": "self_attn", "post_attention_layernorm": "mlp"}  # a block's norms, and what each feeds
WRITERS = ("o_proj", "down_proj")  # the layers of these whose outputs join the stream; all others read it
DAMPING = 0.01  # of the mean of the diagonal, added to it: an order also where the data say nothing

Basis = Callable[[Tensor, torch.Generator], Tensor]


def principal(gram: Tensor, generator: torch.Generator) -> Tensor:
    """The eigenvectors of XᵀX as columns, those of the largest eigenvalues first."""
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.eigh(damped).eigenvectors.flip(1)


def arbitrary(gram: Tensor, generator: torch.Generator) -> Tensor:
    """A random rotation, which knows nothing of the data: what principal components have to beat."""
    drawn = torch.randn(gram.shape, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(gram)


BASES: dict[str, Basis] = {"pca": principal, "random": arbitrary}


class Length(nn.Module):
    """An RMS norm without gains, x √d / ‖x‖, in which d stays the width that it was made for.

    Directions that were left out count as zeros in the mean of squares, so that nothing else changes its size.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.share, self.epsilon = 1 / width, epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) * self.share + self.epsilon)).to(x.dtype)


class Turning(nn.Module):
    """A block whose two shortcuts are matrices; its parts have the names that they had before."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        norms = [getattr(block, name) for name in PARTS]
        width, like = len(norms[0].weight), norms[0].weight
        for (name, part), norm in zip(PARTS.items(), norms, strict=True):
            self.add_module(name, Length(width, _epsilon(norm)))
            self.add_module(part, getattr(block, part))
            shortcut = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)
            nn.init.eye_(shortcut.weight)
            self.add_module(f"{part}_shortcut", shortcut)

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        parts: Any = self
        written = parts.self_attn(hidden_states=parts.input_layernorm(hidden_states), **given)[0]
        hidden_states = parts.self_attn_shortcut(hidden_states) + written
        return parts.mlp_shortcut(hidden_states) + parts.mlp(parts.post_attention_layernorm(hidden_states))


def turning(model: nn.Module, blocks: str | None = None) -> nn.Module:
    """Give every block shortcuts that are matrices, and fold the norms' gains into what reads them; in place.

    The model computes what it did. Also how a model that was sliced is made anew, for `load_slim`.

    Args:
        model: a language model of Llama's kind: RMS norms before attention and before gate, up and down.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: blocks of another kind; says what is missing.
    """
    found = find_blocks(model, blocks)
    for name, block in found.items():
        _check(name, block)
    with torch.no_grad():
        for name, block in found.items():
            for norm, part in PARTS.items():
                gains = getattr(block, norm).weight
                for layer in _readers(getattr(block, part)):
                    layer.weight.copy_((layer.weight.double() * gains.double()).to(layer.weight))
            model.set_submodule(name, Turning(block))
    return model


@torch.no_grad()
def slice_stream(
    model: nn.Module, x: Tensor, width: int, *, basis: str = "pca", seed: int = 0, blocks: str | None = None
) -> Masks:
    """Turn each stretch of the stream, and empty all but its first directions.

    Bases are found one after the other, on what the stretches sliced before leave. What the output layer reads keeps
    its width, as in the authors' code.

    Args:
        model: as in `turning`, which it becomes; changed in place.
        x: tokens to find the bases with, (sequences, tokens).
        width: how many directions stay.
        basis: "pca", or "random" to compare with.
        seed: of random bases.
        blocks: as in `blocks.find_blocks`.

    Returns:
        Masks of all that is turned, applied. They hold for the turned model; `slim` makes it narrower.

    Raises:
        ValueError: a width that is not between 1 and the stream's, an unknown basis, blocks of another kind, or
            a stream that is not finite.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    full = embeddings.weight.shape[1]
    if not 1 <= whole("width", width) <= full:
        raise ValueError(f"width is how many of the stream's {full} directions stay, from 1, not {width}")
    make, generator = lookup("basis", basis, BASES), torch.Generator().manual_seed(seed)
    last = list(find_blocks(model, blocks))[-1]

    def sliced(gram: Tensor) -> Tensor:
        """A basis, (full, full), with zeros for the directions that go."""
        if not bool(gram.isfinite().all()):
            raise ValueError("the stream is NaN or infinite on these data, so it has no principal components")
        q = make(gram, generator)
        q[:, width:] = 0
        return q

    for name, module in find_blocks(model, blocks).items():
        _check(name, module)
    for block in walk(model, x[:1], blocks, label="looking"):
        _check_sums(block)
    pieces = x.to(embeddings.weight.device).split(CHUNK)
    q = sliced(torch.stack([_gram(embeddings(piece)) for piece in pieces]).sum(0))
    turning(model, blocks)
    _untie(model)
    masks: dict[str, Tensor] = {}
    _set(embeddings, embeddings.weight.double() @ q)
    masks[_name(model, embeddings)] = _kept(embeddings.weight, width, columns=True)
    for block in walk(model, x, blocks, label="slicing"):
        for part in PARTS.values():
            inside, shortcut = getattr(block.module, part), getattr(block.module, f"{part}_shortcut")
            for layer in _readers(inside):
                _set(layer, layer.weight.double() @ q)
                masks[_name(model, layer)] = _kept(layer.weight, width, columns=True)
            _set(shortcut, q)  # so that the next stretch is as it was, to find its basis
            if block.name == last and part == "mlp":
                masks[_name(model, shortcut)] = _kept(shortcut.weight, width, columns=True)
                continue
            following = sliced(_stretch(block, inside))
            _set(shortcut, following.T @ q)
            masks[_name(model, shortcut)] = _kept(shortcut.weight, width, rows=True, columns=True)
            writer = _writer(inside)
            _set(writer, following.T @ writer.weight.double())
            masks[_name(model, writer)] = _kept(writer.weight, width, rows=True)
            if writer.bias is not None:
                writer.bias.copy_(following.T @ writer.bias.double())
                masks[_name(model, writer).removesuffix("weight") + "bias"] = _kept(writer.bias, width, rows=True)
            q = following
    found = Masks(masks)
    found.apply(model)
    return found


def _stretch(block: Block, inside: nn.Module) -> Tensor:
    """XᵀX of the stretch of the stream that begins behind a part of a block."""
    grams: list[Tensor] = []
    if inside is block.module.self_attn:
        hook = block.module.post_attention_layernorm.register_forward_pre_hook(lambda _m, a: grams.append(_gram(a[0])))  # type: ignore[union-attr]
    else:
        hook = block.module.register_forward_hook(lambda _m, _a, out: grams.append(_gram(out)))
    try:
        for given in block.inputs:
            block.module(**given)
    finally:
        hook.remove()
    return torch.stack(grams).sum(0)


def _gram(x: Tensor) -> Tensor:
    """XᵀX over all positions, (width, width) float64."""
    rows = x.flatten(0, -2).double()
    return rows.T @ rows


def _set(module: Any, weight: Tensor) -> None:
    module.weight.copy_(weight.to(module.weight))


def _kept(like: Tensor, width: int, *, rows: bool = False, columns: bool = False) -> Tensor:
    """A mask that keeps the first rows, or columns, or both."""
    mask = torch.ones(like.shape, dtype=torch.bool, device=like.device)
    if rows:
        mask[width:] = False
    if columns:
        mask[:, width:] = False
    return mask


def _readers(part: nn.Module) -> list[nn.Linear]:
    """The layers of a part that read the stream."""
    writer = _writer(part)
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear) and layer is not writer]


def _writer(part: nn.Module) -> nn.Linear:
    """The layer of a part that writes the stream."""
    return next(getattr(part, name) for name in WRITERS if hasattr(part, name))


def _name(model: nn.Module, module: nn.Module) -> str:
    """The name of a module's weight."""
    return next(f"{name}.weight" for name, other in model.named_modules() if other is module)


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


def _check(name: str, block: nn.Module) -> None:
    """Raise a ValueError unless a block is of the kind that can be turned."""
    for norm, part in PARTS.items():
        inside = getattr(block, part, None)
        if not isinstance(inside, nn.Module) or not any(
            isinstance(getattr(inside, w, None), nn.Linear) for w in WRITERS
        ):
            raise ValueError(f"{name} cannot be turned: it needs {part}, with a linear layer {' or '.join(WRITERS)}")
        own: Any = getattr(block, norm, None)
        weight = getattr(own, "weight", None)
        if not isinstance(weight, Tensor) or getattr(own, "bias", None) is not None:
            raise ValueError(f"{name} cannot be turned: {norm} must be an RMS norm with gains and without a bias")
        x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.no_grad():
            if not torch.allclose(own(x), Length(len(weight), _epsilon(own))(x) * weight, rtol=1e-2, atol=1e-3):
                raise ValueError(f"{name} cannot be turned: {norm}, a {type(own).__name__}, is no RMS norm")
    held = {
        id(parameter)
        for norm, part in PARTS.items()
        for one in (norm, part)
        for parameter in getattr(block, one).parameters()
    }
    if others := [own for own, parameter in block.named_parameters() if id(parameter) not in held]:
        raise ValueError(f"{name} cannot be turned: it is not known what {', '.join(others[:3])} do in it")


def _check_sums(block: Block) -> None:
    """Raise a ValueError unless a block adds to its input what attention and MLP give, just as it is."""
    turned = Turning(block.module)
    for norm in PARTS:
        setattr(turned, norm, getattr(block.module, norm))
    for given in block.inputs:
        here, there = block.output(given), turned(**given)
        allowed = max(1e-3, 8 * torch.finfo(here.dtype).eps) * float(here.abs().max())
        if bool(((here - there).abs() > allowed).any()):
            raise ValueError(
                f"{block.name} cannot be turned: it does more than add what attention and MLP give to its input"
            )


def _untie(model: nn.Module) -> None:
    """Give the output layer a weight of its own where it shares that of the embeddings, which turns alone."""
    inputs: Any = model.get_input_embeddings()  # type: ignore[operator]
    outputs: Any = model.get_output_embeddings()  # type: ignore[operator]
    if outputs is not None and outputs.weight is inputs.weight:
        outputs.weight = nn.Parameter(inputs.weight.detach().clone(), inputs.weight.requires_grad)
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
