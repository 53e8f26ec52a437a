"""SAP: lottery rounds, each of the size that the weights themselves allow (Diao et al. 2023).

The PQ index says how unequal the weights are that are left. While a few of them hold most, many go in a round; as they
grow alike, fewer do.
"""

import copy
from functools import partial

import torch
from torch import nn

from pruninglab.masks import Masks
from pruninglab.naming import at_least_one
from pruninglab.pq import next_keep
from pruninglab.pruning import prune
from pruninglab.tasks import Task


def sap(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    rounds: int = 30,
    p: float = 1.0,
    q: float = 2.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
    steps: int | None = None,
    lr: float | None = None,
) -> Masks:
    """Prune in rounds from the initial weights: in each the smallest go, as many as `pq.next_keep` says.

    The paper stops after a number of rounds, wherever that is. Here the round that would go beyond `sparsity` stops
    there, and the last of `rounds` removes what is still missing. What is left is trained once more from the initial
    weights. All trainings see the data in the same order.

    Args:
        model: an untrained network; its weights now are those each round begins with. Trained in place.
        task: what to train it on.
        sparsity: the fraction of prunable weights to remove, in [0, 1); met exactly.
        seed: of the order of the data.
        rounds: at most how many.
        p: as in `pq.next_keep`, and so are the other four. The paper's experiments use p = ½, q = 1 and p = 1, q = 2.
        q: likewise.
        eta: likewise.
        gamma: likewise.
        beta: likewise.
        steps: of each training; the task's own if not given.
        lr: the first learning rate of each training; the task's own if not given.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity out of range or that leaves nothing, less than 1 round or step, or what `pq.next_keep`
            does not allow.
    """
    at_least_one("rounds", rounds)
    if steps is not None:
        at_least_one("steps", steps)
    size = partial(next_keep, p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    size(torch.ones(1))  # what is wrong with its settings is told before anything is trained
    end = prune(copy.deepcopy(model), sparsity=sparsity)
    masks = Masks({name: torch.ones_like(mask) for name, mask in end.items()})
    initial = copy.deepcopy(model.state_dict())

    def retrain(label: str) -> None:
        model.load_state_dict(initial)
        masks.apply(model)
        task.train(model, masks=masks, seed=seed, steps=steps, lr=lr, label=f"SAP, {label}")

    for r in range(1, rounds + 1):
        if masks.kept() == end.kept():
            break
        retrain(f"round {r} of at most {rounds}")
        left = torch.cat([model.get_parameter(name).detach()[mask] for name, mask in masks.items()])
        keep = end.kept() if r == rounds else max(size(left), end.kept())
        masks = prune(model, sparsity=1 - keep / end.total(), within=masks)
    retrain("after the last round")
    return masks
