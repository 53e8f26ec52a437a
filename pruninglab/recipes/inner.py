"""What the structured recipes share: which channels lie inside a network, and which layers read them."""

import torch
from torch import Tensor, nn

from pruninglab.graph import Family, Graph, GraphError
from pruninglab.layers import prunable


def inner(graph: Graph) -> dict[str, Family]:
    """Layer → the channels that begin there, and nowhere else: all but residual streams, which several layers share.

    Raises:
        GraphError: there are none.
    """
    found = {}
    for family in graph.families:
        (layer, *others) = family.layers
        born = graph.births.get((layer, 0))
        if not others and len(family.cells) == 1 and born is not None and len(born) == family.channels:
            found[layer] = family
    if not found:
        raise GraphError("no layer of this network has outputs of its own that could be removed")
    return found


def readers(graph: Graph, model: nn.Module) -> dict[str, Tensor]:
    """Layer → the channel that each of its inputs reads, (groups, inputs of a group); −1 where there is none.

    In the order in which the layers run.
    """
    layers = prunable(model)
    found = {}
    for name, tensors in graph.cuts.items():
        if name not in layers:
            continue
        layer, (outputs, inputs) = layers[name], layers[name].weight.shape[:2]
        for channels in tensors:
            if channels.shape[1] == inputs and (channels.shape[0] == 1 or inputs > 1):  # a column, not a row
                wide = channels.reshape(*channels.shape[:2]).expand(outputs, inputs)
                found[name] = wide.unflatten(0, (getattr(layer, "groups", 1), -1))[:, 0]
                break
    return found


def at(values: Tensor, channels: Tensor, none: float = 1.0) -> Tensor:
    """`values[channels]`, and `none` where there is no channel."""
    return torch.cat([values, values.new_full((1,), none)])[channels.to(values.device)]  # −1 is the last
