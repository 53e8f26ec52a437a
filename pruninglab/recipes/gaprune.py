"""GAPrune: prune a language model for a domain, by what its weights mean to the domain and to text in general.

Each weight gets a Fisher information on both kinds of text, and the gradients of both say whether they pull the same
way (Tang & Yang 2025). The score as published is one of squared gradients and of square roots of weights, which differ
by many orders of magnitude: only the weights are heard. `published` shows it, `repaired` is what this project makes of
the idea.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.allocation.threshold import top_masks
from pruninglab.criteria import Scores
from pruninglab.language.sensitivity import Text, few, grouped, outside
from pruninglab.language.structures import standardized
from pruninglab.layers import Exclude, entries
from pruninglab.masks import Masks
from pruninglab.naming import lookup
from pruninglab.pruning import check_sparsity
from pruninglab.statistics import Loss, collect
from pruninglab.tasks import LanguageTask, Task
from pruninglab.tasks.text import windows


def gaprune(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    domain: Text | str | None = None,
    seed: int = 0,
    samples: int = 128,
    score: str = "repaired",
    exclude: Exclude | Iterable[Exclude] = (),
    blocks: str | None = None,
) -> Masks:
    """Remove the weights that matter least to a domain, without a look at what is pruned meanwhile; repair nothing.

    Args:
        model: a language model; changed in place.
        task: a `LanguageTask`; its calibration text is the general one.
        sparsity: the fraction to remove of the weights of all blocks, in [0, 1); all compete with all.
        domain: text of the domain: windows (x, y), both (n, tokens), all of which are used; or a string, which is cut
            into windows of the task's length. The general text itself if not given.
        seed: which windows of the general text.
        samples: how many.
        score: "repaired" or "published".
        exclude: layers to leave alone, as in `prune`; the paper prunes MLPs only, `exclude="*.self_attn"` here.
        blocks: as in `blocks.find_blocks`.

    Returns:
        The masks, applied.

    Raises:
        TypeError: a task of something else than text.
        ValueError: a number out of range, an unknown score, a text that is too short, x and y that do not belong
            together, or gradients that are not finite.
    """
    judge = lookup("score", score, SCORES)
    kept = 1 - check_sparsity(sparsity)
    if not isinstance(task, LanguageTask):
        raise TypeError(f"this prunes language models: task must be a LanguageTask such as 'tiny-llama', not {task!r}")
    general = task.calibration(samples, seed)
    if isinstance(domain, str):
        domain = windows(task.encode(domain), general[0].shape[1], what="domain's text")
    known = evidence(model, general if domain is None else domain, general, task.loss, exclude=exclude, blocks=blocks)
    scores = {name: Scores.of(name, tensor, "GAPrune") for name, tensor in judge(known).items()}
    for layer in scores.values():
        layer.reject_nan()
    masks = Masks(top_masks(scores, int(kept * sum(layer.numel() for layer in scores.values()) + 0.5)))
    masks.apply(model)
    return masks


# ── what two texts say ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Evidence:
    """What is known of one layer; all tensors are shaped like the weight.

    Attributes:
        weight: the weight.
        domain_fisher: Fᵈ, the mean over windows of the squared gradient of one window's loss, on the domain's text.
        general_fisher: Fᵍ, the same on general text.
        domain_grad: gradient of the mean loss on the domain's text.
        general_grad: on general text.
    """

    weight: Tensor
    domain_fisher: Tensor
    general_fisher: Tensor
    domain_grad: Tensor
    general_grad: Tensor


def evidence(
    model: nn.Module,
    domain: Text,
    general: Text,
    loss: Loss | None = None,
    *,
    exclude: Exclude | Iterable[Exclude] = (),
    blocks: str | None = None,
) -> dict[str, Evidence]:
    """Layer of the blocks → what the two texts say of it.

    Args:
        model: a language model; as it was afterwards.
        domain: windows (x, y).
        general: likewise.
        loss: `loss(model(x), y)`, the mean over a batch of windows.
        exclude: layers to leave out, as in `prune`.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: an empty text, or x and y of different shapes.
    """
    left_out = [*outside(model, grouped(model, "layer", blocks)), *entries(exclude)]
    found = []
    for what, (x, y) in (("domain's", domain), ("general", general)):
        if x.shape != y.shape or not len(x):
            raise ValueError(f"x and y of the {what} text must be alike and not empty, not {x.shape} and {y.shape}")
        batches = few(model, (x, y))
        found.append(collect(model, ["weight", "fisher", "grad"], batches, loss=loss, exclude=left_out))
    ours, all_ = found
    return {
        name: Evidence(own["weight"], own["fisher"], all_[name]["fisher"], own["grad"], all_[name]["grad"])
        for name, own in ours.items()
    }


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def published(known: Mapping[str, Evidence], beta: float = 1.0, gamma: float = 0.5) -> dict[str, Tensor]:
    """The score of the authors' code ("DAI"), standardised over each layer.

    softplus((Fᵈ|w| − β Fᵍ|w|) · min(1.2, max(0.8, 1 + 0.2 a)) + γ √(|w| + 10⁻⁸)), with a = `local_agreement`. They put
    a sigmoid around the standardised score, which changes no order and is left out.

    On a trained network F|w| is some 10⁻⁶ and √|w| some 10⁻¹, so this ranks the weights of a layer by their magnitude.

    Args:
        known: as `evidence` gives it.
        beta: how much it speaks against a weight that it matters to general text.
        gamma: how much magnitude counts.
    """
    scores = {}
    for name, e in known.items():
        size = e.weight.double().abs()
        difference = (e.domain_fisher.double() - beta * e.general_fisher.double()) * size
        factor = (1 + 0.2 * local_agreement(e.domain_grad, e.general_grad)).clamp(0.8, 1.2)
        scores[name] = standardized(F.softplus(difference * factor + gamma * (size + 1e-8).sqrt()))
    return scores


def local_agreement(domain_grad: Tensor, general_grad: Tensor) -> Tensor:
    """The mean over each weight's 3 × 3 neighbourhood of the product of both gradients, each of norm 1 as a whole.

    In [−1, 1], but with n weights some 1/n: numbers of norm 1 are small where there are many. Beyond the edge is 0.
    """
    product = unit(domain_grad.double().flatten()) * unit(general_grad.double().flatten())
    return F.avg_pool2d(product.view(1, *domain_grad.shape), 3, stride=1, padding=1)[0]


def repaired(known: Mapping[str, Evidence], beta: float = 1.0) -> dict[str, Tensor]:
    """|w| √(F̃ᵈ + β ½ (1 + a) F̃ᵍ), standardised over each layer, with F̃ = F / mean of F and a = `row_agreement`; ours.

    ½ w² F is what the loss on a text is expected to rise by when w goes (LeCun et al. 1989, with the Fisher information
    for the Hessian). So both terms are of one kind, and of one size whatever the losses' own sizes are. What matters to
    general text is a reason to keep a weight, not to remove it: fully where the texts agree, not at all where they
    contradict each other. With one text for both this ranks a layer by |w| √F.

    Args:
        known: as `evidence` gives it.
        beta: how much general text counts, at least 0.
    """
    scores = {}
    for name, e in known.items():
        trust = (1 + row_agreement(e.domain_grad, e.general_grad)) / 2
        both = relative(e.domain_fisher) + beta * trust * relative(e.general_fisher)
        scores[name] = standardized(e.weight.double().abs() * both.sqrt())
    return scores


def relative(values: Tensor) -> Tensor:
    """Values divided by their mean; zeros stay."""
    return values.double() / values.double().mean().clamp(min=torch.finfo(torch.float64).tiny)


def row_agreement(domain_grad: Tensor, general_grad: Tensor) -> Tensor:
    """The cosine of both gradients over each row of a weight, (outputs, 1): what each output's weights are to learn."""
    product = unit(domain_grad.double()) * unit(general_grad.double())
    return product.sum(-1, keepdim=True).clamp(-1, 1)


def unit(rows: Tensor) -> Tensor:
    """Each row divided by its ℓ2 norm; rows of zeros stay."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


SCORES: dict[str, Callable[..., dict[str, Tensor]]] = {"repaired": repaired, "published": published}
