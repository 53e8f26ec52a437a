"""How wide each layer of a network is, how much of it is left, and why the rest stays."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from pruninglab.batches import Inputs
from pruninglab.graph import Graph, or_none, trace
from pruninglab.masks import Masks
from pruninglab.surgery import emptied

if TYPE_CHECKING:
    import pandas as pd


def widths(model: nn.Module, example_inputs: Inputs | Graph, masks: Masks | None = None) -> "pd.DataFrame":
    """A row for each layer: `layer`, `outputs`, `left` after the masks, and `kept_because` of those that cannot go.

    Args:
        model: any module.
        example_inputs: one batch of what it is called with, or what `graph.trace` found with it.
        masks: what `prune(unit="channel")` returned; without them all outputs are left.
    """
    import pandas as pd

    graph = trace(model, example_inputs)
    removed = torch.zeros(graph.n, dtype=torch.bool)
    if masks is not None and masks.kept() < masks.total():
        removed = emptied(model, masks, graph)
    gone = or_none(removed)
    parameters = dict(model.named_parameters())
    rows = []
    for (name, _), channels in graph.births.items():
        if name in parameters:
            why = dict.fromkeys(graph.kept[c] for c in channels.tolist() if c in graph.kept)
            row = {"layer": name, "outputs": len(channels), "left": int((~gone[channels]).sum())}
            rows.append(row | {"kept_because": "; ".join(why)})
    return pd.DataFrame(rows)
