"""What can be cut out of a language model's blocks: attention heads, and neurons of the layers after attention.

    graph, parts = find_parts(model, x[:1])
    scores = coupled_scores(model, graph, parts, "taylor", (x, y), loss=task.loss)
    masks = cut_parts(model, graph, parts, scores, 0.2)
    small = slim(model, masks, x[:1])

A head is its rows of q, k and v and its columns of the layer that reads it; where queries share keys and values, it is
one head of these with all its queries. A neuron is its rows of gate and up and its column of down. The stream that runs
from block to block stays as wide as it is, so each part can be judged by what it writes into it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruninglab import criteria
from pruninglab.allocation import BudgetError
from pruninglab.batches import Inputs
from pruninglab.channels import masks_of
from pruninglab.criteria import Criterion
from pruninglab.families import Family, head_families
from pruninglab.graph import Graph, GraphError, trace
from pruninglab.language.blocks import find_blocks, walk
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.naming import lookup
from pruninglab.pruning import check_sparsity
from pruninglab.scoring import generator_of
from pruninglab.statistics import Data, Loss, collect
from pruninglab.structured import Question, reasons, scored_channels
from pruninglab.units import structure


@dataclass(frozen=True)
class Part:
    """The heads of one block, or its neurons.

    Attributes:
        block: the block's name.
        kind: "heads" or "neurons".
        cells: for each of them its channels in the graph.
        reader: the layer that reads them, and writes what they say into the stream (o_proj, down_proj).
        columns: (structures, columns of each): which inputs of the reader each of them is.
        cost: how many parameters go with each.
    """

    block: str
    kind: str
    cells: tuple[Tensor, ...]
    reader: str
    columns: Tensor
    cost: int


RIVALS: dict[str, Callable[[Part], object]] = {
    "uniform": lambda part: (part.block, part.kind),  # each on its own, so that all lose the same fraction (UL-UM)
    "block": lambda part: part.block,  # heads against neurons of the same block (UL-MM)
    "isomorphic": lambda part: part.kind,  # heads against heads and neurons against neurons of all blocks (AL-MM)
    "global": lambda part: None,  # all against all (AL-AM)
}


def find_parts(
    model: nn.Module, example_inputs: Inputs, *, spare: tuple[int, int] = (0, 0), blocks: str | None = None
) -> tuple[Graph, list[Part]]:
    """The parts of each block, in the order of the blocks, and the graph in which they are followed.

    Args:
        model: a language model.
        example_inputs: one batch of what the model is called with.
        spare: how many of the first and of the last blocks are left out.
        blocks: as in `blocks.find_blocks`.

    Raises:
        GraphError: there are none; says why.
        ValueError: no blocks are left.
    """
    every = list(find_blocks(model, blocks))
    chosen = every[spare[0] : len(every) - spare[1]]
    if not chosen or min(spare) < 0:
        raise ValueError(f"spare={spare} leaves none of {len(every)} blocks to prune")
    graph = trace(model, example_inputs, whole_heads=True)
    families = [("heads", family) for family in head_families(graph)]
    families += [("neurons", family) for family in graph.families if len(family.cells) == 1]
    parts = []
    for block in chosen:
        for kind, family in families:
            if all(layer.startswith(f"{block}.") for layer in family.layers):
                parts += _part(model, graph, block, kind, family)
    if not parts:
        raise GraphError(f"no head or neuron of this {type(model).__name__} can be removed: {reasons(graph)}")
    for kind in {"heads", "neurons"} - {part.kind for part in parts}:
        warnings.warn(f"the {kind} of this {type(model).__name__} stay: {reasons(graph)}", stacklevel=2)
    return graph, parts


def _part(model: nn.Module, graph: Graph, block: str, kind: str, family: Family) -> list[Part]:
    """A family as a part, if one layer alone reads it."""
    cells = family.cells if kind == "heads" else tuple(family.cells[0].split(1))
    owner = torch.full((graph.n + 1,), -1, dtype=torch.int64)  # the last entry stands for "no channel"
    for i, cell in enumerate(cells):
        owner[cell] = i
    found = [
        (name, owner[channels.reshape(-1)])
        for name in prunable(model)
        if name.startswith(f"{block}.")
        for channels in graph.cuts.get(name, ())
        if channels.shape[0] == 1 and bool((owner[channels] >= 0).any())  # a column for each channel, not a row
    ]
    if len(found) != 1:
        return []
    reader, owners = found[0]
    columns = torch.stack([(owners == i).nonzero().reshape(-1) for i in range(len(cells))])
    one = torch.zeros(graph.n, dtype=torch.bool)
    one[cells[0]] = True
    left, held = graph.alive_sizes(one), dict(model.named_parameters())
    cost = sum(round(held[name].numel() * (1 - share)) for name, share in left.items() if name in held)
    return [Part(block, kind, tuple(cells), reader, columns, cost)]


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def coupled_scores(
    model: nn.Module,
    graph: Graph,
    parts: Sequence[Part],
    criterion: str | Criterion,
    data: Data | None = None,
    *,
    loss: Loss | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """For each part the scores of its structures: a criterion's, summed over all weights that go with one.

    Args:
        model: what was traced.
        graph: what `find_parts` found.
        parts: what it found too.
        criterion: scores single weights, as in `prune`.
        data: as in `prune`.
        loss: as in `prune`.
        seed: for criteria that draw.

    Returns:
        (structures,) float64 for each part.
    """
    question = Question(criteria.find(criterion), data, loss, None, seed, ())
    _, channels, _ = scored_channels(model, structure("head"), graph, question)
    return [torch.stack([channels[cell].nansum() for cell in part.cells]) for part in parts]


@torch.no_grad()
def reader_scores(
    model: nn.Module,
    parts: Sequence[Part],
    criterion: Criterion,
    data: Data,
    *,
    also: Sequence[str] = (),
    blocks: str | None = None,
) -> tuple[list[Tensor], dict[str, dict[str, Tensor]]]:
    """For each part a criterion's scores of its reader's columns: its weights' scores, summed over each column.

    Statistics are those of the model as it is; one block is in work at a time.

    Args:
        model: a language model.
        parts: what `find_parts` found.
        criterion: scores the weights of a reader; asks for no gradients.
        data: tokens, or batches of what the model is called with.
        also: statistics to collect beside.
        blocks: as in `blocks.find_blocks`.

    Returns:
        (structures, columns of each) for each part, and reader → statistic → tensor.
    """
    readers = {part.reader for part in parts}
    names = dict.fromkeys(["weight", *criteria.needs(criterion), *also])
    found: dict[str, dict[str, Tensor]] = {}
    for block in walk(model, data, blocks, label="scoring"):
        others = [layer for own, layer in block.layers().items() if block.full(own) not in readers]
        if len(others) < len(block.layers()):
            statistics = collect(block.module, names, block.inputs, exclude=others)
            found |= {block.full(own): values for own, values in statistics.items()}
    scores = []
    for part in parts:
        layer = criteria.score(criterion, part.reader, found[part.reader], generator_of(0))
        scores.append(layer.tensor().double().sum(0).cpu()[part.columns])
    return scores, found


def standardized(scores: Tensor) -> Tensor:
    """(s − mean) / standard deviation over all of a part; zeros where all are alike."""
    centred = scores.double() - scores.double().mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred


# ── choice ────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut_parts(
    model: nn.Module,
    graph: Graph,
    parts: Sequence[Part],
    scores: Sequence[Tensor],
    sparsity: float | Mapping[str, float],
    allocation: str = "uniform",
) -> Masks:
    """Remove the structures with the lowest scores, and return the masks, applied.

    Args:
        model: what was traced; changed in place.
        graph: what `find_parts` found.
        parts: what it found too.
        scores: (structures,) for each part; the lowest go.
        sparsity: as in `choose`.
        allocation: as in `choose`.
    """
    removed = torch.zeros(graph.n, dtype=torch.bool)
    for part, gone in zip(parts, choose(parts, scores, sparsity, allocation), strict=True):
        for i in gone.nonzero().reshape(-1).tolist():
            removed[part.cells[i]] = True
    masks = masks_of(model, graph, removed)
    masks.apply(model)
    return masks


def choose(
    parts: Sequence[Part],
    scores: Sequence[Tensor],
    sparsity: float | Mapping[str, float],
    allocation: str = "uniform",
) -> list[Tensor]:
    """Which structures go: those with the lowest scores, up to the number whose parameters come nearest to the budget.

    Of each part at least one stays.

    Args:
        parts: what `find_parts` found.
        scores: (structures,) for each.
        sparsity: the fraction of the parts' parameters to remove, in [0, 1); or one for each reader (or its block),
            as the rules of `ratios` give, with which there is no `allocation` to choose.
        allocation: who competes with whom: "uniform" (each part on its own), "block" (heads with neurons of the same
            block), "isomorphic" (all heads, all neurons), "global" (all with all).

    Returns:
        (structures,) bool for each part; True goes.

    Raises:
        ValueError: an unknown allocation, a sparsity out of range, a part without one, a score that is NaN.
        BudgetError: less would have to stay than one of each part.
    """
    for part, own in zip(parts, scores, strict=True):
        if len(own) != len(part.cells) or bool(own.isnan().any()):
            raise ValueError(f"the {part.kind} of {part.block} need {len(part.cells)} scores without NaN, not {own}")
    shared = isinstance(sparsity, Mapping)
    rivalry = lookup("allocation", "uniform" if shared else allocation, RIVALS)
    rivals: dict[object, list[int]] = {}
    for i, part in enumerate(parts):
        rivals.setdefault(rivalry(part), []).append(i)
    gone = [torch.zeros(len(part.cells), dtype=torch.bool) for part in parts]
    for group in rivals.values():
        share = _share(sparsity, parts[group[0]]) if isinstance(sparsity, Mapping) else check_sparsity(sparsity)
        costs = torch.cat([torch.full((len(parts[i].cells),), float(parts[i].cost)).double() for i in group])
        values = torch.cat([scores[i].double() for i in group])
        best = torch.zeros(len(values), dtype=torch.bool)
        start = 0
        for i in group:
            best[start + int(scores[i].argmax())] = True
            start += len(scores[i])
        goal = share * float(costs.sum())
        order = values.masked_fill(best, torch.inf).argsort(stable=True)[: len(values) - int(best.sum())]
        reached = torch.cat([torch.zeros(1).double(), costs[order].cumsum(0)])
        if goal > float(reached[-1]) + float(costs.max()) / 2:  # the nearest choice would take the last of a part
            raise BudgetError(f"sparsity={share:g} would leave less than one head and one neuron of each block")
        going = torch.zeros(len(values), dtype=torch.bool)
        going[order[: int((reached - goal).abs().argmin())]] = True
        for i, own in zip(group, going.split([len(parts[i].cells) for i in group]), strict=True):
            gone[i] = own
    return gone


def _share(shares: Mapping[str, float], part: Part) -> float:
    for name in (part.reader, part.block):
        if name in shares:
            return check_sparsity(shares[name])
    raise ValueError(f"a share is needed for {part.reader} (or for its block); given: {', '.join(list(shares)[:3])}, …")
