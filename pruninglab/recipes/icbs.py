"""iCBS: exchange removed and kept weights block by block, each block a small combinatorial problem (Rosenberg 2024).

A mask that was chosen by a score of single weights (magnitude, say) is improved without any training. Each step looks
at one block of weights of one layer, at the network as it is pruned now, and asks which of them go together best:
`curvature.quadratic`, from the gradient and the Fisher of one batch. As many go as before, so each layer's density
stays, and weights that stay have their old values. The authors' paper was not at hand: this follows their
formulas as they are in their code, apart from what is said at `icbs`.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruninglab.allocation import Allocation
from pruninglab.criteria import Criterion, find
from pruninglab.curvature.fisher import fisher_of, gradients
from pruninglab.curvature.quadratic import Quadratic, quadratic
from pruninglab.curvature.solvers import anneal, swap_search
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.naming import lookup, whole
from pruninglab.progress import progress
from pruninglab.pruning import prune
from pruninglab.scoring import layer_scores
from pruninglab.tasks import Task
from pruninglab.tasks.training import batch_at, evaluating

SOLVERS: dict[str, Callable[..., Tensor]] = {"swap": swap_search, "anneal": anneal}


def icbs(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    steps: int = 30,
    block: int = 512,
    batch: int = 200,
    initial: str | Criterion = "magnitude",
    allocation: str | Allocation = "uniform",
    gamma: float = 0.75,
    ridge: float = 1e-3,
    tabu: float = 0.4,
    fix_pruned: float = 0.42,
    fix_kept: float = 0.35,
    couplings: bool = True,
    clip_negative: bool = False,
    solver: str = "swap",
    check: bool = False,
    on_step: Callable[[int, nn.Module], object] | None = None,
) -> Masks:
    """Prune a trained network by a criterion, then exchange weights in `steps` blocks. No training, no weight update.

    A step takes a batch, a layer (more often the larger ones, by the logarithm of their size) and a block of it: the
    removed weights that would lower the loss most by coming back and the kept ones that would be missed least, by
    |w g|. Set aside are, for good, the removed weights with the lowest scores and the kept ones with the highest, and
    for a while those that a block had last. Then the block's quadratic is minimised and its weights written.

    The authors' code drops negative couplings (by what seems a slip: `clip_negative`), anneals where we swap (`anneal`)
    and has one tabu list of up to `tabu` of a layer's free weights. At low density that list takes all kept weights,
    and nothing is left to exchange; here kept and removed weights are listed apart.

    Args:
        model: a trained network; changed in place.
        task: what it was trained on; its training data are used.
        sparsity: the fraction of prunable weights to remove, in [0, 1).
        seed: of the batches, of the order of layers and of all that draws.
        steps: how many blocks; 0 leaves what the criterion chose.
        block: how many weights, half of them removed ones (fewer of a kind where a layer has not so many).
        batch: samples of a step; the rank of the block's Fisher is at most that.
        initial: the criterion of the mask to begin with.
        allocation: how much of each layer goes; it stays so.
        gamma: γ, how far the gradient is trusted.
        ridge: μ, what moving costs.
        tabu: the fraction of a layer's free weights of each kind that may be set aside because they were in a block.
        fix_pruned: the fraction of the removed weights that never come back.
        fix_kept: the fraction of the kept weights that never go.
        couplings: False replaces the Fisher by its diagonal: the ablation.
        clip_negative: True drops negative entries of the quadratic, as the authors' code does.
        solver: "swap" or "anneal".
        check: whether a step is taken back if the loss on another batch rises.
        on_step: called as `on_step(k, model)` with the pruned model, at first with k = 0, then after each step.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity, fraction, count or factor out of range, or an unknown name; nothing has changed then.
    """
    steps, block, batch = whole("steps", steps), whole("block", block), whole("batch", batch)
    if steps < 0 or block < 2 or batch < 1:
        raise ValueError(f"icbs needs steps ≥ 0, block ≥ 2, batch ≥ 1, not steps={steps}, block={block}, batch={batch}")
    for name, share in {"tabu": tabu, "fix_pruned": fix_pruned, "fix_kept": fix_kept}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a fraction, in [0, 1], not {share}")
    if not gamma >= 0 or not ridge >= 0:
        raise ValueError(f"gamma and ridge must be 0 or more, not gamma={gamma} and ridge={ridge}")
    solve = lookup("solver", solver, SOLVERS)
    device, how = next(model.parameters()).device, replace(task.training, batch=batch, augment=False)

    def draw(step: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = batch_at(step, task.data["train"], how, seed)
        return x.to(device), y.to(device)

    layers, first = prunable(model), draw(0, seed)
    options = {"sparsity": sparsity, "criterion": initial, "allocation": allocation, "data": first, "loss": task.loss}
    start = prune(copy.deepcopy(model), seed=seed, **options)  # type: ignore[arg-type]
    scores = layer_scores(model, layers, find(initial), first, loss=task.loss, seed=seed)
    states = {
        name: State.of(layer.weight, start[name], scores[name].tensor(), fix_pruned, fix_kept)
        for name, layer in layers.items()
    }
    start.apply(model)
    if on_step is not None:
        on_step(0, model)
    order = turns({name: layer.weight.numel() for name, layer in layers.items()}, steps, seed)
    for step, name in enumerate(progress(order, desc="iCBS", unit="step"), start=1):
        state, weight = states[name], layers[name].weight
        found = gradients(model, [draw(step - 1, seed)], loss=task.loss, only=[name])
        index = state.candidates(found.mean[name].flatten(), block, tabu)
        if len(index):
            fisher = fisher_of(found.of(name, index).double())
            if not couplings:
                fisher = fisher.diagonal().diag()
            problem = state.problem(index, fisher, found.mean[name].flatten(), gamma, ridge)
            problem = problem.clipped() if clip_negative else problem
            before = ~state.keep[index]
            after = solve(problem, before, seed=seed + step)
            old_loss = _loss(model, task, draw(step - 1, seed + 1)) if check else math.inf
            state.write(weight, index, after)
            if check and _loss(model, task, draw(step - 1, seed + 1)) > old_loss:
                state.write(weight, index, before)
            state.seen[index] = step
        if on_step is not None:
            on_step(step, model)
    masks = Masks({name: state.keep.view(layers[name].weight.shape) for name, state in states.items()})
    masks.apply(model)
    return masks


@dataclass
class State:
    """What the search knows of a layer, all of it flat, (n,).

    Attributes:
        old: the weights before pruning.
        keep: True where a weight is there now.
        free: True where that may change.
        seen: the last step whose block had the weight; 0 for none.
    """

    old: Tensor
    keep: Tensor
    free: Tensor
    seen: Tensor

    @classmethod
    def of(cls, weight: Tensor, keep: Tensor, scores: Tensor, fix_pruned: float, fix_kept: float) -> "State":
        """At the start. Not free are the removed weights with the lowest scores and the kept ones with the highest."""
        kept, order = keep.flatten().clone(), scores.flatten().argsort(stable=True)
        free = torch.ones_like(kept)
        removed, stay = order[~kept[order]], order[kept[order]]
        free[removed[: int(fix_pruned * len(removed))]] = False
        free[stay[len(stay) - int(fix_kept * len(stay)) :]] = False
        return cls(weight.detach().flatten().clone(), kept, free, torch.zeros_like(kept, dtype=torch.int64))

    def candidates(self, gradient: Tensor, block: int, tabu: float) -> Tensor:
        """Places of a block: first the removed weights with the largest |w g|, then the kept ones with the smallest.

        Empty where there is nothing to exchange: no candidate of one of the kinds.

        Args:
            gradient: g, (n,), at the network as it is.
            block: how many, half of them removed ones.
            tabu: the fraction of the free weights of a kind that are left out if a block had them, the latest first.
        """
        gain = (self.old * gradient).abs()
        removed, kept = self._open(~self.keep, tabu), self._open(self.keep, tabu)
        removed = removed[gain[removed].argsort(descending=True, stable=True)[: block // 2]]
        kept = kept[gain[kept].argsort(stable=True)[: block - block // 2]]
        return torch.cat([removed, kept]) if len(removed) and len(kept) else removed[:0]

    def _open(self, kind: Tensor, tabu: float) -> Tensor:
        """The free weights of a kind that are not on its tabu list."""
        places = (self.free & kind).nonzero().flatten()
        seen = self.seen[places]
        listed = min(int(seen.count_nonzero()), int(tabu * len(places)))
        return places[seen.argsort(stable=True)[: len(places) - listed]]

    def problem(self, index: Tensor, fisher: Tensor, gradient: Tensor, gamma: float, ridge: float) -> Quadratic:
        """The quadratic of a block. `fisher` is the block's, `gradient` the layer's."""
        old = self.old[index]
        change = torch.where(self.keep[index], 0.0, -old)
        return quadratic(old, change, fisher, gradient[index], gamma=gamma, ridge=ridge)

    @torch.no_grad()
    def write(self, weight: Tensor, index: Tensor, gone: Tensor) -> None:
        """Remove the weights of a block where `gone` is True, and give the others their old values."""
        self.keep[index] = ~gone
        weight.copy_(torch.where(self.keep, self.old, 0.0).view(weight.shape))


def turns(sizes: Mapping[str, int], steps: int, seed: int) -> list[str]:
    """Whose turn it is at each step: layers in proportion to the logarithm of their size, in random order.

    No layer is left out if there is a step for each.
    """
    shares = {name: math.log10(max(size, 2)) for name, size in sizes.items()}
    counts = dict.fromkeys(sizes, int(steps >= len(sizes)))
    while sum(counts.values()) < steps:
        most = max(sizes, key=lambda name: steps * shares[name] / sum(shares.values()) - counts[name])
        counts[most] += 1
    names = [name for name, count in counts.items() for _ in range(count)]
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[i] for i in shuffled]


@torch.no_grad()
def _loss(model: nn.Module, task: Task, sample: tuple[Tensor, Tensor]) -> float:
    """The mean loss of a batch, in evaluation mode."""
    with evaluating(model):
        return float(task.loss(model(sample[0]), sample[1]))
