"""PERP: after pruning, retrain little of the network (Zimmer et al. 2023).

Norms and biases are less than a percent of a network's parameters, low-rank adapters a few; to retrain them takes
the memory of their gradients and of their optimizer's state only. `perp` is a recovery as those of `recovery` are.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from pruninglab.adapters import Adapted, training_only
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.naming import unknown
from pruninglab.tasks import Task
from pruninglab.tasks.training import OnStep

ADAPTERS = {"lora": "lora", "mask-lora": "mask", "scale-lora": "scale"}  # part → kind of adapter
PARTS = ("norms", "biases", "output", *ADAPTERS)
Parts = str | Sequence[str]


def perp(
    model: nn.Module,
    masks: Masks,
    task: Task,
    *,
    seed: int = 0,
    parts: Parts | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    steps: int | None = None,
    lr: float | None = None,
    on_step: OnStep | None = None,
) -> int:
    """Train on only a few of the parameters, or adapters that are merged under the masks afterwards.

    Whatever happens, the model has its old structure afterwards: the same parameters by the same names, of which those
    need gradients that did before. An interrupted run leaves what was learned until then.

    Args:
        model: the pruned network.
        masks: its masks.
        task: the task it was trained on.
        seed: of the order of the data, and of the adapters.
        parts: what to train, one or several of
            "norms": scales and shifts of norm layers;
            "biases": of all other layers; a Llama has none, and none are added, since its config would no longer fit;
            "output": the output layer, and the embedding with it where they share a weight;
            "mask-lora", "scale-lora" or "lora": adapters beside the linear layers that masks speak of (see `adapters`).
            If not given: "norms", "biases" and "mask-lora", as far as the network has them.
        rank: of the adapters.
        alpha: adapters count alpha / rank times.
        steps: how many; half of the task's own if not given.
        lr: the first learning rate; the task's own if not given.
        on_step: called after each step, as in `training.train`. Adapters are not merged yet then.

    Returns:
        How many gradient steps that took.

    Raises:
        ValueError: a part that is unknown or that the network does not have, several kinds of adapters, a bad rank.
    """
    steps = task.training.steps // 2 if steps is None else steps
    how: dict[str, Any] = {"steps": steps, "lr": lr, "on_step": on_step}
    with retraining(model, masks, parts, rank=rank, alpha=alpha, seed=seed) as student:
        masks.apply(model)
        done = len(task.train(student, masks=masks, seed=seed + 1, label="PERP", **how))
        if done and isinstance(student, Adapted):
            _warn_of_unused(student)
    masks.apply(model)
    return done


def share(model: nn.Module, masks: Masks, parts: Parts | None = None, *, rank: int = 8) -> float:
    """How many parameters `perp` trains, as a fraction of all of the model's. Arguments and errors as there."""
    student, own = _student(model, masks, parts, rank=rank)
    kept = {id(parameter) for parameter in model.parameters()}
    added = [parameter for parameter in student.parameters() if id(parameter) not in kept]
    total = sum(parameter.numel() for parameter in model.parameters())
    return sum(parameter.numel() for parameter in [*own, *added]) / total


@contextmanager
def retraining(
    model: nn.Module, masks: Masks, parts: Parts | None = None, *, rank: int = 8, alpha: float = 16.0, seed: int = 0
) -> Iterator[nn.Module]:
    """What to train so that only these parts change: the model, or one with adapters, merged when the block ends.

    Arguments and errors are those of `perp`.
    """
    student, own = _student(model, masks, parts, rank=rank, alpha=alpha, seed=seed)
    with training_only(model, own):
        try:
            yield student
        finally:
            if isinstance(student, Adapted):
                student.merge()


def _student(
    model: nn.Module, masks: Masks, parts: Parts | None, **options: Any
) -> tuple[nn.Module, list[nn.Parameter]]:
    """The model, or one with adapters, and which of the model's own parameters are to be trained."""
    found, masked = _parameters(model), _masked_linear(model, masks)
    chosen = _chosen(model, found, bool(masked), parts)
    own = list({id(parameter): parameter for part in chosen for parameter in found.get(part, ())}.values())
    kinds = [ADAPTERS[part] for part in chosen if part in ADAPTERS]
    if not kinds:
        return model, own
    trained = {id(parameter) for parameter in own}
    layers = [name for name in masked if id(model.get_parameter(name)) not in trained]
    return Adapted(model, kinds[0], masks=masks, layers=layers, **options), own


def _chosen(model: nn.Module, found: dict[str, list[nn.Parameter]], adaptable: bool, parts: Parts | None) -> list[str]:
    """The parts to train, after a look at whether they can be."""
    has = [part for part in PARTS if found.get(part) or (part in ADAPTERS and adaptable)]
    chosen: list[str]
    if parts is None:
        chosen = [part for part in ("norms", "biases", "mask-lora") if part in has]
        if not chosen:
            raise ValueError(f"{type(model).__name__} has no norms, no biases and no pruned linear layer to retrain")
        return chosen
    chosen = list(dict.fromkeys([parts] if isinstance(parts, str) else parts))
    if not chosen:
        raise ValueError(f"parts= names nothing to retrain; known: {', '.join(PARTS)}")
    for part in chosen:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        if part not in has:
            what, known = "pruned linear layers" if part in ADAPTERS else part, ", ".join(has) or "nothing of all this"
            raise ValueError(f"this {type(model).__name__} has no {what} to retrain; it has {known}")
    if sum(part in ADAPTERS for part in chosen) > 1:
        raise ValueError(f"a layer has one adapter at most: choose one of {', '.join(ADAPTERS)}")
    return chosen


def _parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Part → the model's own parameters that belong to it."""
    found: dict[str, list[nn.Parameter]] = {"norms": [], "biases": [], "output": []}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if "norm" in type(module).__name__.lower():  # each architecture has its own class of RMS norm
            found["norms"] += own.values()
        else:
            found["biases"] += [own["bias"]] if "bias" in own else []
    output = _output(model)
    found["output"] = [] if output is None else list(output.parameters(recurse=False))
    return found


def _output(model: nn.Module) -> nn.Module | None:
    """The output layer: what a language model says it is, or the last linear layer."""
    named = getattr(model, "get_output_embeddings", None)
    if named is not None and (layer := named()) is not None:
        return layer
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _masked_linear(model: nn.Module, masks: Masks) -> list[str]:
    return [name for name, layer in prunable(model).items() if name in masks and isinstance(layer, nn.Linear)]


def _warn_of_unused(student: Adapted) -> None:
    unused = [name for name, adapter in student.by_name().items() if adapter.up.grad is None]
    if unused:
        warnings.warn(
            f"the adapters of {', '.join(unused)} were never used: the model reads these weights itself instead of "
            "calling the layer, so they stayed as they were",
            stacklevel=3,
        )
