"""One-shot pruning of language models: Wanda, SparseGPT, GBLM-Pruner, OWL and ECoFLaP, with magnitude to compare.

All follow one protocol: the blocks are pruned in order, each with what the pruned blocks before it make of the
calibration text. Only the layers of the blocks are pruned; embeddings, norms and the output layer stay. Which weights
go is the step's business (`language.one_shot`), how many from where that of the ratios (`language.ratios`).
"""

import math
import os
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pruninglab.files import digest
from pruninglab.language.blocks import Block
from pruninglab.language.one_shot import Step, masked, named, one_shot, pattern_of, repaired, scored
from pruninglab.language.ratios import Ratios, grouped, shares_by
from pruninglab.language.ratios import ecoflap as ecoflap_ratios
from pruninglab.language.ratios import owl as owl_ratios
from pruninglab.language.selection import GROUPS, select
from pruninglab.language.sensitivity import Text, few, outside
from pruninglab.layers import Layer
from pruninglab.masks import Masks
from pruninglab.naming import unknown
from pruninglab.statistics import PIECE, Loss, collect, statistic
from pruninglab.tasks import LanguageTask, Task
from pruninglab.units import Pattern

Unit = str | Pattern | None
Folder = str | os.PathLike[str] | None


def wanda(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    unit: Unit = None,
    group: str = "row",
    ratios: str | Ratios | Mapping[str, float] = "uniform",
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Remove the weights with the least |w| · ‖x‖₂ of each row; repair nothing (Sun et al. 2024).

    Args:
        model: a language model; changed in place.
        task: for its calibration text; a `LanguageTask`.
        sparsity: the fraction to remove of the weights of all blocks, in [0, 1); met exactly. A half if not given.
        unit: "N:M" instead, N of every M consecutive inputs stay; that fixes the sparsity of every layer.
        group: "row" or "layer": among whom weights compete.
        ratios: how much each layer loses: a name in `language.ratios.RATIOS`, a function like those, or layer →
            fraction, which fixes the sparsity.
        samples: how many windows of text.
        seed: which windows.
        blocks: the name of the list of blocks; found if not given.
        resume: a folder that keeps each block as soon as it is done, so that an interrupted run goes on.

    Returns:
        The masks, applied.

    Raises:
        TypeError: a task of something else than text.
        ValueError: a sparsity out of range or beside what fixes it, more samples than there are, an unknown name, or
            something that is not finite among weights and activations. The blocks not reached are unchanged then.
    """
    step = scored("wanda", group, unit)
    text, shares = _asked(model, task, sparsity, unit, ratios, samples, seed, blocks)
    return one_shot(model, text[0], step, shares, blocks=blocks, resume=resume)


def magnitude(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    unit: Unit = None,
    group: str = "layer",
    ratios: str | Ratios | Mapping[str, float] = "uniform",
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Remove the smallest weights of each layer: what every paper of this file compares with.

    Arguments and errors as in `wanda`. The text matters only where the ratios are measured.
    """
    step = scored("magnitude", group, unit)
    text, shares = _asked(model, task, sparsity, unit, ratios, samples, seed, blocks)
    return one_shot(model, text[0], step, shares, blocks=blocks, resume=resume)


def sparsegpt(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    unit: Unit = None,
    damping: float = 0.01,
    ratios: str | Ratios | Mapping[str, float] = "uniform",
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Remove weights column by column and let the columns that follow make up for it (Frantar & Alistarh 2023).

    Arguments and errors as in `wanda`; in blocks of 128 columns all rows compete, and `damping` is a fraction of the
    mean square of a layer's inputs.
    """
    step = repaired(damping, unit)
    text, shares = _asked(model, task, sparsity, unit, ratios, samples, seed, blocks)
    return one_shot(model, text[0], step, shares, blocks=blocks, resume=resume)


def gblm(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    unit: Unit = None,
    alpha: float = 100.0,
    norm: str = "l1",
    group: str = "row",
    ratios: str | Ratios | Mapping[str, float] = "uniform",
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Wanda with gradients: |w| · (‖x‖₂ / √N + α ‖∂ℓ/∂w‖), the lowest of each row go (Das et al. 2023, GBLM-Pruner).

    ‖∂ℓ/∂w‖ is the norm over the N samples of the gradient of each sample's mean loss, taken once, before anything is
    pruned. As in the authors' code it is a sum that grows with N and ‖x‖₂ / √N does not, so α weighs more the more
    samples there are; the paper's α = 100 belongs to N = 128. With α = 0 this is Wanda.

    Arguments and errors as in `wanda`; `alpha` is α, at least 0, and `norm` is "l1" (the sum of absolute gradients) or
    "l2". An interrupted run goes on only with the model as it was before.
    """
    statistics = {"l1": "grad_abs", "l2": "grad_norm"}
    if norm not in statistics:
        raise unknown("norm", norm, statistics)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number of at least 0, not {alpha}")
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    text, shares = _asked(model, task, sparsity, unit, ratios, samples, seed, blocks)
    found = gradients(model, text, statistics[norm], task.loss, blocks)
    step = blended(found, alpha, samples, group, unit, norm)
    if resume is not None:  # gradients of a model that is half pruned would be others
        step = named(step, step.__name__, digest(*found.values()))
    return one_shot(model, text[0], step, shares, blocks=blocks, resume=resume)


def owl(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    times: float = 5.0,
    spread: float = 0.08,
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Wanda, where blocks with many outliers lose less (Yin et al. 2024).

    Arguments and errors as in `wanda`; `times` and `spread` as in `language.ratios.owl`.
    """
    how = partial(owl_ratios, times=times, spread=spread)
    return wanda(model, task, sparsity=sparsity, ratios=how, samples=samples, seed=seed, blocks=blocks, resume=resume)


def ecoflap(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    order: str = "zeroth",
    span: float = 0.1,
    draws: int = 32,
    samples: int = 128,
    seed: int = 0,
    blocks: str | None = None,
    resume: Folder = None,
) -> Masks:
    """Wanda, where blocks on which the loss depends less lose more (Sung et al. 2024).

    Arguments and errors as in `wanda`; `order`, `span` and `draws` as in `language.ratios.ecoflap`.
    """
    how = partial(ecoflap_ratios, order=order, span=span, draws=draws)
    return wanda(model, task, sparsity=sparsity, ratios=how, samples=samples, seed=seed, blocks=blocks, resume=resume)


@statistic
def grad_abs(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    """ℓ1 norm over samples of each weight's per-sample gradient, Σₙ |∂ℓₙ/∂w|; shaped like the weight."""
    step = max(1, PIECE // layer.weight.numel())
    total = inputs.new_zeros(len(inputs), output_grads.shape[-1], inputs.shape[-1], dtype=torch.float32)
    for x, g in zip(inputs.split(step, 1), output_grads.split(step, 1), strict=True):
        total += (g.mT @ x).abs().sum(1, dtype=torch.float32)
    return total.reshape(layer.weight.shape)


def gradients(
    model: nn.Module, text: Text, name: str = "grad_abs", loss: Loss | None = None, blocks: str | None = None
) -> dict[str, Tensor]:
    """Layer of the blocks → a statistic of its per-sample gradients, taken a few sequences at a time."""
    found = collect(model, [name], few(model, text), loss=loss, exclude=outside(model, grouped(model, "layer", blocks)))
    return {layer: statistics[name] for layer, statistics in found.items()}


def blended(
    found: Mapping[str, Tensor], alpha: float, samples: int, group: str = "row", unit: Unit = None, norm: str = ""
) -> Step:
    """GBLM-Pruner's step: the inputs' norms of the block as it is reached, and gradients found before."""
    pattern = pattern_of(unit)

    def step(block: Block, shares: Mapping[str, float]) -> dict[str, Tensor]:
        masks = {}
        for name, own in collect(block.module, ["weight", "input_norm"], block.inputs).items():
            full = block.full(name)
            scores = own["weight"].abs() * (own["input_norm"] / math.sqrt(samples) + alpha * found[full])
            masks[name] = select(scores, shares[name], group, pattern, full)
        return masked(block, masks)

    return named(step, "gblm", norm, alpha, group, unit)


def _asked(
    model: nn.Module,
    task: Task,
    sparsity: float | None,
    unit: Unit,
    ratios: str | Ratios | Mapping[str, float],
    samples: int,
    seed: int,
    blocks: str | None,
) -> tuple[Text, Mapping[str, float] | float]:
    """The calibration text, and how much each layer loses. Raises as `wanda` says."""
    if not isinstance(task, LanguageTask):
        raise TypeError(f"this prunes language models: task must be a LanguageTask such as 'tiny-llama', not {task!r}")
    text, pattern = task.calibration(samples, seed), pattern_of(unit)
    if pattern is not None:
        if ratios != "uniform":
            raise ValueError(f"unit {pattern.name} fixes how much each layer loses; leave ratios={ratios!r} out")
        if sparsity is not None and not math.isclose(sparsity, 1 - pattern.density):
            raise ValueError(f"unit {pattern.name} fixes sparsity={1 - pattern.density:g}; leave {sparsity} out")
        return text, 1 - pattern.density
    if isinstance(ratios, Mapping):
        if sparsity is not None:
            raise ValueError(f"ratios that name each layer's fraction fix the sparsity; leave {sparsity} out")
        return text, ratios
    half = 0.5 if sparsity is None else sparsity
    return text, shares_by(ratios, model, text, half, blocks=blocks, loss=task.loss, seed=seed)
