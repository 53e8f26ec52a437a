"""Statistics of what flows through a whole network before training: its gradients, and a signal of ones.

Both are gradients of a number that describes the network as a whole: GraSP's is the norm of the loss's gradient,
SynFlow's is the sum of outputs when every weight is positive. See `pruninglab.criteria.flow`.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from pruninglab.batches import batches
from pruninglab.curvature.hvp import hessian_product, mean_gradient, twice_differentiable
from pruninglab.layers import prunable
from pruninglab.recording import observed
from pruninglab.statistics import Loss, cross_entropy, statistic

Values = dict[str, Tensor]
LEAK = 0.01  # of the flow: what may get lost on the way before we say so


# ── gradient flow ─────────────────────────────────────────────────────────────────────────────────────────────────


@statistic
def hessian_grad(model: nn.Module, data: Any, loss: Loss = cross_entropy, temperature: float = 200.0) -> Values:
    """H g, half the gradient of ‖g‖², for the mean loss over all data (Wang et al. 2020, §4.1); like the weights.

    g and H are those of all parameters, biases and norms too, since all of them are trained (the authors' code takes
    the prunable weights alone); weights that are zero count like any other. g is summed over all batches first, then
    H g batch by batch, so that the product is that of the whole data and memory holds one batch. The data are read
    twice and must be the same both times: no random augmentation, and with batch norms no shuffling.

    Batch norms normalise by each batch, as training will and as in the paper: before it, running statistics are
    placeholders, with which the network is another one, without norms. The result then depends on how the data are cut
    into batches. The running statistics do not change, and dropout is off.

    Args:
        model: any module whose operations can be differentiated twice.
        data: as in `collect`, with labels.
        loss: as in `collect`.
        temperature: what all floating-point outputs of the model are divided by. With the paper's 200 the
            softmax is nearly uniform, whatever the logits are.

    Raises:
        ValueError: a temperature that is not positive, data that are empty or without labels, a loss that is not one
            number, or a batch with one sample where norms need several.
        RuntimeError: torch knows no second derivative of an operation in the model (hardsigmoid, say).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    layers = prunable(model)
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    data = list(data) if isinstance(data, Iterator) else data  # it is read twice

    def cooled(outputs: Any, y: Any) -> Tensor:
        return loss(tree_map(lambda leaf: leaf / temperature if _is_real(leaf) else leaf, outputs), y)

    with ExitStack() as undo:
        undo.enter_context(observed(model))
        undo.enter_context(_batch_statistics(model))
        undo.enter_context(twice_differentiable(parameters))
        g = [v.to(p.dtype) for p, v in zip(parameters, mean_gradient(model, data, parameters, cooled), strict=True)]
        products = hessian_product(model, data, parameters, g, cooled)
    found = {id(p): value for p, value in zip(parameters, products, strict=True)}
    return {name: found[id(layer.weight)] for name, layer in layers.items()}


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms that normalise by each batch and leave their running statistics alone; modes are not restored."""
    with ExitStack() as undo:
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                undo.callback(setattr, norm, "track_running_stats", norm.track_running_stats)
                norm.training, norm.track_running_stats = True, False
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch norm met a batch with one sample, which has no statistics: pass batches of at least two "
                "samples (data given as a whole are cut into batches of 128)"
            ) from error


# ── synaptic flow ─────────────────────────────────────────────────────────────────────────────────────────────────


@statistic
def flow_grad(model: nn.Module, data: Any = None) -> Values:
    """∂ ln R/∂|w|, where R is what comes out when every weight is |w| and ones go in (Tanaka et al. 2020, eq. 1, §6).

    R is the sum over all paths from inputs to outputs of the product of the weights' magnitudes, as long as everything
    else in the network is linear for positive numbers, as ReLU and pooling are. Then |w| · ∂ ln R/∂|w| is the share
    of R that passes through w, and what flows into a hidden unit flows out again. What adds a constant (biases, the
    shifts and running means of batch norms) is set to zero meanwhile: flow that starts inside the network would come
    out of units that it never went into, and the shares of a layer would not sum to one.

    R grows or shrinks exponentially with depth: it is computed in float64, and only shares of it are given back, which
    fit into float32 (where R is 0, nothing is divided). Batch norms are in evaluation mode, where they are linear; by
    the statistics of one sample they would undo all that flows. The computation uses copies of the parameters.

    Args:
        model: any module.
        data: as in `collect`; only the shape of the first sample is looked at. Not needed by a model that begins with a
            `Linear` layer.

    Raises:
        ValueError: the shape of an input is not known, inputs that are not real numbers (tokens), or R is not finite.

    Warns:
        UserWarning: nothing flows through the network, or what flows in does not come out, since something in the
            network is not linear for positive numbers (a layer norm, say); scores are not shares then.
    """
    layers = prunable(model)
    ones = _ones(model, data)
    with observed(model), torch.enable_grad():
        state = {name: _positive(name, tensor) for name, tensor in model.named_parameters()}
        fixed = {name: _without_shift(name, tensor) for name, tensor in model.named_buffers()}
        own = {id(parameter): state[name] for name, parameter in model.named_parameters()}
        starts = [own[id(layer.weight)] for layer in layers.values()]
        starts += [leaf for leaf in tree_leaves(ones) if isinstance(leaf, Tensor)]
        for start in starts:
            start.requires_grad_()
        outputs = _outputs(model, {**state, **fixed}, ones, guessed=data is None)
        flow = torch.stack([leaf.sum() for leaf in tree_leaves(outputs) if _is_real(leaf)]).sum()
        grads = torch.autograd.grad(flow, starts, allow_unused=True)
    found = [torch.zeros_like(start) if grad is None else grad for start, grad in zip(starts, grads, strict=True)]
    total = flow.item()
    _check_flow(total, sum(grad.sum().item() for grad in found[len(layers) :]))
    return {name: grad / (total or 1) for name, grad in zip(layers, found[: len(layers)], strict=True)}


def _positive(name: str, parameter: Tensor) -> Tensor:
    return _without_shift(name, parameter.detach().abs())


def _without_shift(name: str, tensor: Tensor) -> Tensor:
    """A copy in float64, zero if by its name it adds a constant to what flows; of whole numbers a plain copy."""
    if not tensor.is_floating_point():
        return tensor.clone()
    last = name.rpartition(".")[2]
    shift = "bias" in last or last == "running_mean"
    return torch.zeros_like(tensor, dtype=torch.float64) if shift else tensor.to(torch.float64, copy=True)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _ones(model: nn.Module, data: Any) -> Any:
    """One sample of ones in float64, shaped like the first of the data, or like what the model's first layer takes."""
    first = next(module for module in model.modules() if module._parameters)
    device = next(model.parameters()).device
    if data is None:
        if not isinstance(first, nn.Linear):
            raise ValueError(
                f"SynFlow looks at no data but needs the shape of an input, which a {type(first).__name__} as the "
                "first layer does not tell: pass data=, of which only the shape is used"
            )
        return torch.ones(1, first.in_features, dtype=torch.float64, device=device)
    x = next((x for x, _ in batches(data)), None)
    if x is None:
        raise ValueError("the data are empty: not one sample to take the shape of an input from")
    numbers = [leaf.dtype for leaf in tree_leaves(x) if isinstance(leaf, Tensor) and not leaf.is_floating_point()]
    if numbers:
        raise ValueError(f"SynFlow feeds ones, so inputs must be real numbers, not {numbers[0]} (tokens have no size)")

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.ones((1, *leaf.shape[1:]), dtype=torch.float64, device=device)

    return tree_map(one, x)


def _outputs(model: nn.Module, state: dict[str, Tensor], ones: Any, guessed: bool) -> Any:
    """What comes out of the model with other parameters and buffers."""
    x = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, ones)  # the model may write into it
    try:
        return functional_call(model, state, (), x) if isinstance(x, dict) else functional_call(model, state, (x,))
    except RuntimeError as error:
        if not guessed:
            raise
        raise ValueError(
            f"SynFlow needs the shape of an input, and {tuple(ones.shape)}, which the first layer takes, is not it: "
            "pass data=, of which only the shape is used"
        ) from error


def _check_flow(flow: float, inflow: float) -> None:
    """Raise or warn as `flow_grad` says. `inflow` is Σ x · ∂R/∂x: what R would be if all were linear (Euler)."""
    if not math.isfinite(flow):
        raise ValueError(
            f"the flow through the model is {flow}: a weight is not finite, or it is deeper than float64 reaches"
        )
    if flow == 0:
        warnings.warn("nothing flows from inputs to outputs: SynFlow scores every weight 0", stacklevel=2)
    elif abs(inflow - flow) > LEAK * abs(flow):
        share = round(inflow / flow, 2) + 0.0  # never "-0 %"
        warnings.warn(
            f"of the flow that comes out of the model, {share:.0%} went in: something in it is not linear for positive "
            "numbers, such as a layer norm, a softmax or a sigmoid, and SynFlow's scores mean less",
            stacklevel=2,
        )
