"""Layer-wise relevance propagation (LRP): how much of a network's answer passes through each output of each layer.

The relevance of the answer is the answer itself (the logit of the explained class). Going backwards, each neuron hands
its relevance to what it was computed from, in shares that sum to one: the total is conserved (Bach et al. 2015).

How it is done: while the model runs, every function that shares relevance out differently from a gradient is replaced
by one whose *backward* is the rule. Functions that only move numbers (view, cat, pad, max-pooling, …) keep the backward
of autograd, which moves relevance just as well. What is neither gets an error that names it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pruninglab.batches import batches, length, to_device
from pruninglab.layers import Exclude, prunable
from pruninglab.naming import unknown
from pruninglab.progress import progress
from pruninglab.recording import ACTIVATIONS, observed

RULES = ("alphabeta", "epsilon", "zplus")
FOLDED = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
LINEAR = FOLDED | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
SUMS = frozenset({"mean", "sum", *(f"{a}avg_pool{d}d" for a in ("", "adaptive_") for d in (1, 2, 3))})
ADDITIONS = frozenset({"add", "iadd", "radd"})
SCALINGS = frozenset({"div", "idiv", "imul", "itruediv", "mul", "rmul", "truediv"})
_MOVES = """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d alpha_dropout cat channel_shuffle chunk clone concat
    concatenate contiguous double dropout dropout1d dropout2d dropout3d expand expand_as feature_alpha_dropout flatten
    flip float get getitem index_select max_pool1d max_pool2d max_pool3d movedim narrow pad permute pixel_shuffle
    pixel_unshuffle ravel repeat requires_grad reshape reshape_as roll select split split_with_sizes squeeze stack
    swapaxes t tensor_split tile to transpose unbind unflatten unsqueeze view view_as
"""
MOVES = frozenset(_MOVES.split())


def relevance(
    model: nn.Module,
    data: Any,
    *,
    rule: str = "zplus",
    alpha: float = 2.0,
    epsilon: float = 1e-6,
    exclude: Exclude | Iterable[Exclude] = (),
) -> dict[str, Tensor]:
    """Relevance of each output of each prunable layer, for the class of the label (Yeom et al. 2019, §3).

    With aᵢ the input and wᵢⱼ the weight, R_j is handed down as

        "epsilon"    Rᵢ = Σⱼ aᵢwᵢⱼ / (zⱼ + ε sign zⱼ) · Rⱼ, where zⱼ holds the bias too, which keeps its share
        "alphabeta"  Rᵢ = Σⱼ (α (aᵢwᵢⱼ)⁺ / Σ(·)⁺ + β (aᵢwᵢⱼ)⁻ / Σ(·)⁻) · Rⱼ, α + β = 1, biases left out; where all
                     contributions have one sign, they take all (or the total would not be conserved)
        "zplus"      the same with α = 1, β = 0, which the paper takes for deep networks; where no contribution is
                     positive, the relevance is lost

    A batch norm counts as one with the layer before it, whose weights it scales. Activations and factors that are
    constants hand on what they get, additions and means follow the rule with weights of one, max-pooling gives all to
    the largest. Relevance that reaches a weight several times is added up.

    Args:
        model: any classifier made of layers, batch norms, activations, additions and pooling; run in evaluation mode.
        data: as in `collect`; without labels the class with the largest output is explained.
        rule: how relevance is shared out, see above.
        alpha: α of "alphabeta", at least 1.
        epsilon: ε of "epsilon", positive.
        exclude: as in `prune`.

    Returns:
        Parameter name → (outputs,): the sum over positions, the mean over samples.

    Raises:
        ValueError: an unknown rule or a number out of range, data that are empty or whose labels are no classes, a
            model whose output is not (samples, classes), an operation that no rule is known for, or a layer that is
            never called.
        RuntimeError: the model computes something else when it is watched, since it relies on writing in place.
    """
    if rule not in RULES:
        raise unknown("rule of relevance", rule, RULES)
    if not alpha >= 1 or not epsilon > 0:
        raise ValueError(f"alpha must be at least 1 and epsilon positive, not alpha={alpha!r}, epsilon={epsilon!r}")
    share = _Epsilon(epsilon) if rule == "epsilon" else _AlphaBeta(alpha if rule == "alphabeta" else 1.0)
    layers = prunable(model, exclude)
    names = {id(layer.weight): name for name, layer in layers.items()}
    device = next(iter(layers.values())).weight.device
    total = {name: torch.zeros(len(layer.weight), dtype=torch.float64) for name, layer in layers.items()}
    samples = 0
    with observed(model, gradients=False):
        for x, y in progress(batches(data), desc="explaining", unit="batch"):
            x, y = to_device((x, y), device)
            for name, found in _explain(model, x, y, names, share).items():
                total[name] += found.double().cpu()
            samples += length(x, "inputs")
    if not samples:
        raise ValueError("the calibration data are empty: not one sample to explain")
    return {name: (value / samples).to(layers[name].weight) for name, value in total.items()}


def _explain(model: nn.Module, x: Any, y: Tensor | None, names: Mapping[int, str], share: "_Rule") -> dict[str, Tensor]:
    """Sum of the relevance of each layer's outputs over one batch."""

    def run() -> Tensor:
        return model(**x) if isinstance(x, dict) else model(x)

    with torch.no_grad():
        plain = run()
    if not isinstance(plain, Tensor) or plain.ndim != 2:
        got = f"shape {tuple(plain.shape)}" if isinstance(plain, Tensor) else f"a {type(plain).__name__}"
        raise ValueError(f"relevance explains a classifier's output, (samples, classes); this model returns {got}")
    if y is None:
        y = plain.argmax(1)
    elif y.shape != plain.shape[:1] or y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < plain.shape[1]:
        raise ValueError(f"labels must be classes 0 to {plain.shape[1] - 1}, one for each sample, to be explained")
    with torch.enable_grad(), _Explaining(names, share) as explaining:
        outputs = run()
    eps = torch.finfo(plain.dtype).eps  # one more rounding of half precision is coarser than what is allowed else
    if not torch.allclose(outputs, plain, rtol=max(1e-3, 8 * eps), atol=max(1e-4, 8 * eps) * float(plain.abs().max())):
        raise RuntimeError("the model computes something else when it is watched: it relies on writing in place")
    silent = sorted(set(names.values()) - explaining.called)
    if silent:
        raise ValueError(f"never called in the forward pass: {silent}; leave out with exclude={silent}")
    start = torch.zeros_like(plain).scatter(1, y[:, None], plain.gather(1, y[:, None]))
    torch.autograd.grad(outputs, explaining.starts, start, allow_unused=True)
    return explaining.found


# ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────

Through = Callable[..., Tensor]  # (x, weight) → the linear map without bias; (x) → a sum or mean, where there is none


@dataclass(frozen=True)
class _Epsilon:
    epsilon: float

    def __call__(self, through: Through, x: Tensor, weight: Tensor | None, z: Tensor, r: Tensor) -> Tensor:
        stable = z + torch.where(z >= 0, self.epsilon, -self.epsilon)
        parts = through(x) if weight is None else through(x, weight)
        return x * torch.autograd.grad(parts, x, r / stable)[0]


@dataclass(frozen=True)
class _AlphaBeta:
    alpha: float

    def __call__(self, through: Through, x: Tensor, weight: Tensor | None, z: Tensor, r: Tensor) -> Tensor:
        signs = [part.detach().requires_grad_() for part in (x.clamp(min=0), x.clamp(max=0))]
        up, down = signs
        if weight is None:
            positive, negative = through(up), through(down)
        else:
            plus, minus = weight.clamp(min=0), weight.clamp(max=0)
            positive = through(up, plus) + through(down, minus)
            negative = through(up, minus) + through(down, plus)
        alpha, beta = self.alpha * (positive != 0), (1 - self.alpha) * (negative != 0)
        whole = alpha + beta
        r = torch.where(whole != 0, r / whole, 0)
        shares = [
            torch.where(part != 0, part_share * r / part, 0)
            for part, part_share in ((positive, alpha), (negative, beta))
        ]
        grads = torch.autograd.grad([positive, negative], signs, shares)
        return up.detach() * grads[0] + down.detach() * grads[1]


_Rule = _Epsilon | _AlphaBeta


class _Sharing(torch.autograd.Function):
    """A linear map whose backward is a rule."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, through: Through, weight: Tensor | None, bias: Tensor | None, share: _Rule
    ) -> Tensor:
        z = through(x) if weight is None else through(x, weight)
        if bias is not None:
            z = z + bias
        ctx.save_for_backward(x, z)
        ctx.through, ctx.weight, ctx.share = through, weight, share
        return z

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        x, z = ctx.saved_tensors
        with torch.enable_grad():
            shares = ctx.share(ctx.through, x.detach().requires_grad_(), ctx.weight, z.detach(), relevance[0])
        return shares.detach(), None, None, None, None


class _Handing(torch.autograd.Function):
    """A function of each number alone: the relevance goes on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        return relevance[0], None


# ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Explaining(TorchFunctionMode):
    """Replaces functions while a model runs, and hears what relevance comes back to each layer."""

    def __init__(self, names: Mapping[int, str], share: _Rule) -> None:
        super().__init__()
        self.names, self.share = names, share
        self.starts: list[Tensor] = []
        self.called: set[str] = set()
        self.found: dict[str, Tensor] = {}
        self.layers = WeakTensorKeyDictionary()  # output of a layer → its x, weight, bias and function

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        if name in LINEAR:
            return self._linear(name, func, *args, **kwargs)
        carrying = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not carrying or name in MOVES:
            return func(*args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if name in ADDITIONS and set(kwargs) <= {"other"}:
            return self._add(*args, **kwargs)
        if name in SUMS:
            rest = tuple(args[1:])
            kwargs.pop("input", None)
            return _Sharing.apply(carrying[0], lambda a: func(a, *rest, **kwargs), None, None, self.share)
        x = carrying[0]
        scaled = name in SCALINGS and len(carrying) == 1 and ("mul" in name or x is next(iter(args), None))
        if name in ACTIVATIONS or scaled:
            free = tree_map(lambda leaf: leaf.detach().clone() if leaf is x else leaf, (args, kwargs))  # it may write
            y = func(*free[0], **free[1])
            if y.shape == x.shape:
                return _Handing.apply(x, y)
        result = func(*args, **kwargs)
        if result is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            raise ValueError(
                f"no rule is known for relevance through {name!r}: known are layers, batch norm, activations, sums, "
                "means, average and max pooling, factors that are constants, and what only moves numbers"
            )
        return result

    def _linear(
        self,
        kind: str,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        x = input
        if not x.requires_grad:
            x = x.detach().requires_grad_()
            self.starts.append(x)
        layer = (kind, func, x, weight, bias, rest, more)
        return self._layer(layer, weight, bias, self.names.get(id(weight)))

    def _layer(self, layer: tuple[Any, ...], weight: Tensor, bias: Tensor | None, name: str | None) -> Tensor:
        """The output of a layer with this weight and bias, which may be folded ones."""
        kind, func, x, _, _, rest, more = layer
        if bias is not None and kind != "linear":
            bias = bias.reshape(-1, *[1] * int(kind[-2]))
        through = lambda a, w: func(a, w, None, *rest, **more)  # noqa: E731
        y = _Sharing.apply(x, through, weight, bias, self.share)
        if name is not None:
            self.called.add(name)
            over = tuple(range(y.ndim - 1)) if kind == "linear" else tuple(d for d in range(y.ndim) if d != 1)
            y.register_hook(lambda r: self.found.update({name: self.found.get(name, 0) + r.detach().sum(over)}))
        self.layers[y] = layer
        return y

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None:
            raise ValueError("no rule is known for relevance through a batch norm that keeps no running statistics")
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        layer = self.layers.get(input)
        if layer is not None and layer[0] in FOLDED and (layer[0] != "linear" or input.ndim == 2):
            old, old_bias = layer[3], layer[4]
            folded = old * scale.reshape(-1, *[1] * (old.ndim - 1))
            shift = shift if old_bias is None else shift + old_bias * scale
            return self._layer(layer, folded, shift, self.names.get(id(old)))
        shape = (1, -1, *[1] * (input.ndim - 2))
        return _Sharing.apply(input, torch.mul, scale.reshape(shape), shift.reshape(shape), self.share)

    def _add(self, input: Tensor, other: Any) -> Tensor:
        if not isinstance(other, Tensor) or not isinstance(input, Tensor):  # a number keeps nothing
            x = input if isinstance(input, Tensor) else other
            return _Handing.apply(x, (input + other).detach())
        both = torch.stack(torch.broadcast_tensors(input, other))
        return _Sharing.apply(both, lambda a: a.sum(0), None, None, self.share)
