"""AP, activate while pruning: lottery rounds in which some negative weights go as well (Liu et al. 2022).

A unit whose ReLU is never above zero does nothing. Each round gives up a few weights that are negative and that
training has hardly moved: what they take from their units' sums is gone then, and the units fire more often.
"""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pruninglab.allocation import BudgetError
from pruninglab.masks import Masks
from pruninglab.naming import at_least_one
from pruninglab.pruning import prune
from pruninglab.tasks import Task

SHARE = 0.02  # q, as the paper has it
ROUND = 0.2  # of what is left goes in a round if the number of rounds is not given, as in the lottery's own papers


def ap(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    rounds: int | None = None,
    share: float | None = None,
    steps: int | None = None,
    lr: float | None = None,
) -> Masks:
    """Prune in rounds of two halves: the smallest weights, then the negative ones that training moved least.

    With p the fraction of what is left that a round removes and q the part of it that is AP's, a round is

        train from the initial weights, and remove a fraction p − q: the smallest |w| of the whole network
        train from the initial weights, and remove a fraction q: of the negative w, the smallest |w − w₀|

    and after the last round what is left is trained from the initial weights once more: 2 · rounds + 1 trainings. All
    see the data in the same order. With q = 0 the second halves fall away, and this is iterative magnitude pruning.

    Args:
        model: an untrained network; its weights now are w₀. Trained in place.
        task: what to train it on.
        sparsity: the fraction of prunable weights to remove, in [0, 1); met exactly.
        seed: of the order of the data.
        rounds: how many; if not given, so many that each removes about a fifth of what is left.
        share: q, in [0, 1); 0.02 if not given, or all that a round removes if that is less.
        steps: of each training; the task's own if not given.
        lr: the first learning rate of each training; the task's own if not given.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity or share out of range, a share above what a round removes, less than 1 round or step.
        BudgetError: the kind of ValueError that tells of a sparsity that leaves nothing, or, in the middle of a run, of
            too few negative weights.
    """
    if steps is not None:
        at_least_one("steps", steps)
    end = prune(copy.deepcopy(model), sparsity=sparsity)
    total = end.total()
    counts = plan(total, end.kept(), rounds, share)
    initial = copy.deepcopy(model.state_dict())

    def retrain(masks: Masks | None, label: str) -> None:
        model.load_state_dict(initial)
        if masks is not None:
            masks.apply(model)
        task.train(model, masks=masks, seed=seed, steps=steps, lr=lr, label=f"AP, {label}")

    masks = None
    for r, (after_magnitude, after_ap) in enumerate(counts, start=1):
        retrain(masks, f"round {r} of {len(counts)}")
        masks = prune(model, sparsity=1 - after_magnitude / total, within=masks)
        if after_ap < after_magnitude:
            retrain(masks, f"round {r} of {len(counts)}, second half")
            there = sum(int((model.get_parameter(name) < 0).sum()) for name in masks)
            if there < after_magnitude - after_ap:
                wanted = f"share={share} asks for {after_magnitude - after_ap} negative weights to go in round {r}"
                raise BudgetError(f"{wanted}, but only {there} are negative; take a smaller share")
            masks = prune(
                model, sparsity=1 - after_ap / total, criterion=negative_movement, within=masks, initial=initial
            )
    assert masks is not None  # there is at least one round
    retrain(masks, "after the last round")
    return masks


def plan(total: int, keep: int, rounds: int | None, share: float | None) -> list[tuple[int, int]]:
    """How many of `total` weights are left after the two halves of each round, `keep` in the end.

    Each round leaves the same fraction of what there was, and `share` of what there was goes in its second half; both
    to the nearest weight.

    Raises:
        ValueError: less than 1 round, a share out of range or above what a round removes.
    """
    if rounds is None:
        rounds = max(1, round(math.log(keep / total) / math.log(1 - ROUND)))
    at_least_one("rounds", rounds)
    removed = 1 - (keep / total) ** (1 / rounds)
    given = share is not None
    share = share if share is not None else min(SHARE, removed)
    if not 0 <= share < 1:
        raise ValueError(f"share is a fraction of the weights that are left, in [0, 1), not {share}")
    left = [round(total * (keep / total) ** (r / rounds)) for r in range(rounds + 1)]
    pairs = [(after + round(share * before), after) for before, after in pairwise(left)]
    if not given:  # to the nearest weight it may be one too many
        pairs = [(min(middle, before), after) for before, (middle, after) in zip(left, pairs, strict=False)]
    if any(middle > before for before, (middle, _) in zip(left, pairs, strict=False)):
        raise ValueError(
            f"share={share} of what is left is more than the {removed:.3g} that each of {rounds} rounds removes; "
            "take a smaller share or fewer rounds"
        )
    return pairs


def negative_movement(weight: Tensor, initial_weight: Tensor) -> Tensor:
    """|w − w₀| for negative weights, and infinity for the others, which AP leaves alone."""
    return (weight - initial_weight).abs().where(weight < 0, torch.inf)
