"""LoRAPrune: heads and neurons go while LoRA tunes a language model, as LoRA's gradients say (Zhang et al. 2023).

The gradient of a weight of billions of numbers is never made. What a step on the adapters would change the weight by is
told by their own gradients, and stands in for it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pruninglab.adapters import Adapted, training_only
from pruninglab.during import Gradual
from pruninglab.graph import Graph
from pruninglab.language.structures import Part, choose, cut_parts, find_parts
from pruninglab.masks import Masks
from pruninglab.recipes.compresso import layers_named
from pruninglab.tasks import Task

MEMORY = 0.9  # of the running mean of importances

Matrices = dict[str, tuple[Tensor, Tensor]]  # name of a weight → B and A
Members = list[tuple[str, int, Tensor]]  # weight, 0 for its rows or 1 for its columns, the structure of each of them


def loraprune(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    steps: int = 100,
    lr: float | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    begin: float = 0.1,
    end: float = 0.9,
    every: int = 10,
    spare: tuple[int, int] = (0, 0),
    blocks: str | None = None,
) -> Masks:
    """Train adapters, and remove the least important heads and neurons of every block little by little meanwhile.

    The importance of a weight is the square of ĝ ⊙ W, with the gradient ĝ that `estimate` makes of LoRA's. It is summed
    over each structure, as `structure_scores` says, and smoothed over steps. Each block loses the same fractions, along
    the cubic schedule.

    Args:
        model: a trained language model; changed in place. No parameter of its own is trained.
        task: what to train on.
        sparsity: the fraction of each block's attention heads, and of its neurons, to remove, in [0, 1).
        seed: of the adapters and of the order of the data.
        steps: how many.
        lr: the first learning rate; the task's own if not given.
        rank: of the adapters, which stand beside all linear layers of the blocks.
        alpha: they count alpha / rank times.
        begin: of pruning, as a fraction of the steps.
        end: likewise.
        every: how many steps lie between prunings.
        spare: how many of the first and of the last blocks not to prune; in the paper the first tenth and the last one.
        blocks: as in `blocks.find_blocks`.

    Returns:
        The masks, applied; the adapters are merged, which loses nothing. `slim` makes the model really smaller.

    Raises:
        ValueError: a number out of range, a model without blocks, or gradients that became NaN.
        GraphError: no head and no neuron can be removed.
    """
    x = task.data["train"][0][:1].to(next(model.parameters()).device)
    graph, parts = find_parts(model, x, spare=spare, blocks=blocks)
    names = layers_named(model, "*", blocks)
    student = Adapted(model, "lora", layers=names, rank=rank, alpha=alpha, seed=seed)
    groups = [members(graph, part, names) for part in parts]
    importance = [torch.zeros(len(part.cells), dtype=torch.float64) for part in parts]
    before = matrices(student)
    found: Masks | None = None

    def shrink(sparsity: float, within: Masks | None = None) -> Masks:
        nonlocal found
        for score, gone in zip(importance, choose(parts, importance, sparsity), strict=True):
            score[gone] = -torch.inf  # for good
        found = cut_parts(model, graph, parts, importance, sparsity)
        held = student.factored(found)
        held.apply(student)
        return held

    gradual = Gradual(shrink, sparsity, steps, begin=begin, end=end, every=every)

    def on_step(step: int, optimizer: torch.optim.Optimizer) -> None:
        nonlocal before
        for score, now in zip(importance, structure_scores(student, before, parts, groups), strict=True):
            score.mul_(MEMORY).add_(now, alpha=1 - MEMORY)
        gradual(step, optimizer)
        before = matrices(student)

    with training_only(model), gradual:
        try:
            task.train(student, seed=seed + 1, steps=steps, lr=lr, on_step=on_step, label="LoRAPrune")
        finally:
            student.merge()
    assert found is not None  # the window is over
    found.apply(model)
    return found


def estimate(up: Tensor, down: Tensor, up_grad: Tensor, down_grad: Tensor) -> Tensor:
    """ĝ = ∇B A + B ∇A − ∇B ∇A, which stands in for the gradient of the weight (Zhang et al. 2023).

    A step of size 1 against the gradients of B and A changes BA by exactly −ĝ. With G the gradient of the weight and
    W = W₀ + s BA it is s (G AᵀA + BBᵀ G) − s² G AᵀBᵀ G: that is s G where B = 0 and the columns of A are orthonormal,
    and where B = 0 and A is random it is proportional to G on average.

    Args:
        up: B, (outputs, rank).
        down: A, (rank, inputs).
        up_grad: ∇B.
        down_grad: ∇A.
    """
    return up_grad @ down + up @ down_grad - up_grad @ down_grad


def importance_of(student: Adapted, before: Matrices, name: str) -> Tensor:
    """(ĝ ⊙ W)² of one adapted weight, shaped like it.

    Args:
        student: after a step; its adapters hold the gradients of that step.
        before: B and A as they were when these gradients were taken.
        name: of the weight.

    Raises:
        ValueError: the gradients are NaN or infinite.
    """
    adapter, (up, down) = student.by_name()[name], before[name]
    if adapter.up.grad is None or adapter.down.grad is None:  # an expert that no token went to
        return torch.zeros_like(student.layers[name].weight)
    gradient = estimate(up, down, adapter.up.grad, adapter.down.grad)
    if not bool(gradient.sum().isfinite()):
        raise ValueError(f"the gradients of the adapters of {name} are NaN or infinite: is the learning rate too high?")
    return (gradient * (student.layers[name].weight + adapter.scale * up @ down)).square()


@torch.no_grad()
def structure_scores(
    student: Adapted, before: Matrices, parts: Sequence[Part], groups: Sequence[Members]
) -> list[Tensor]:
    """For each part the importance of its structures, (structures,) float64.

    In each layer the importances of a structure's rows or columns are added up and divided by the ℓ2 norm over all
    structures, so that no layer outvotes the others; then those of the layers are added.
    """
    scores = []
    for part, group in zip(parts, groups, strict=True):
        total = torch.zeros(len(part.cells), dtype=torch.float64)
        for name, dim, owner in group:
            lines = importance_of(student, before, name).sum(1 - dim).double().cpu()
            sums = torch.zeros(len(total) + 1, dtype=torch.float64).index_add(0, owner, lines)[:-1]
            total += sums / sums.norm().clamp(min=torch.finfo(sums.dtype).tiny)
        scores.append(total)
    return scores


def members(graph: Graph, part: Part, names: Iterable[str]) -> Members:
    """Where the structures of a part lie in these weights; what belongs to none has the number after the last."""
    owner = torch.full((graph.n + 1,), len(part.cells), dtype=torch.int64)  # the last entry stands for "no channel"
    for i, cell in enumerate(part.cells):
        owner[cell] = i
    found = []
    for name in names:
        for channels in graph.cuts.get(name, ()):
            mine = owner[channels.reshape(-1)]
            if bool((mine < len(part.cells)).any()):
                found.append((name, 0 if channels.shape[1] == 1 else 1, mine))
    return found


def matrices(student: Adapted) -> Matrices:
    """Copies of B and A as they are now."""
    return {name: (a.up.detach().clone(), a.down.detach().clone()) for name, a in student.by_name().items()}
