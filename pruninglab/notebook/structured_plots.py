"""The drawings of structured pruning: which channels go together, and how wide the layers are before and after."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import nn

from pruninglab.graph import Group
from pruninglab.layers import prunable
from pruninglab.notebook.pictures import BLUE, COLOURS, GREY, Picture, canvas

MOST = 400  # more squares than this are too small to read
APART = 2.9  # from one layer's left edge to the next one's, in squares


def draw_groups(model: nn.Module, groups: Sequence[Group], alt: str | None = None) -> Picture:
    """Every layer with its input channels (left) and output channels (right); equal labels must go together.

    The letter of a label, and its colour, is the family: channels that could stand for each other. The number counts
    the groups of a family. Channels that cannot be removed are grey and have no label.

    Args:
        model: a small network of `Linear` and `Conv` layers.
        groups: what `channel_groups` found in it.
        alt: the alternative text; made from the groups if not given.

    Raises:
        ValueError: the model has no such layer, or more than 400 squares to draw.
    """
    layers = prunable(model)
    sides = {(name, dim): [""] * layer.weight.shape[dim] for name, layer in layers.items() for dim in (1, 0)}
    squares = sum(map(len, sides.values()))
    if squares > MOST:
        raise ValueError(f"{squares} squares are too many to read; draw a smaller network (at most {MOST})")
    families, told = _families(groups), []
    for letter, members in families.items():
        for number, group in enumerate(members, start=1):
            for member in group.members:
                for index in member.indices if (member.parameter, member.dimension) in sides else ():
                    sides[member.parameter, member.dimension][index] = f"{letter}{number}"
        through = dict.fromkeys(
            m.parameter.removesuffix(".weight") for m in members[0].members if m.parameter in layers
        )
        told.append(f"{letter}, {len(members)} groups through {', '.join(through)}")
    colours = {letter: COLOURS[i % len(COLOURS)] for i, letter in enumerate(families)}
    most = max(map(len, sides.values()))
    figure, ax = canvas(width=min(1.2 * len(layers) + 0.3, 12), height=min(0.27 * most + 0.6, 8))
    for i, name in enumerate(layers):
        ax.text(APART * i + 1.1, -0.95, name.removesuffix(".weight"), ha="center", fontsize=8, color=GREY)
        for dim, left, side in ((1, APART * i, "in"), (0, APART * i + 1.2, "out")):
            ax.text(left + 0.5, -0.2, side, ha="center", fontsize=7, color=GREY)
            _column(ax, left, sides[name, dim], colours)
    ax.set(xlim=(-0.2, APART * len(layers) - 0.4), ylim=(most + 0.1, -1.7), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return Picture(figure, alt or f"Channels that go together, by family: {'; '.join(told) or 'none can be removed'}.")


def _families(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Letter → the groups of a family; groups that have to stay are in none."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        if group.family >= 0 and not group.kept_because:
            found.setdefault(group.family, []).append(group)
    return {ascii_uppercase[i % 26] * (i // 26 + 1): members for i, members in enumerate(found.values())}


def _column(ax: Axes, left: float, labels: Sequence[str], colours: Mapping[str, str]) -> None:
    for row, label in enumerate(labels):
        colour = to_rgb(colours.get(label.rstrip("0123456789"), GREY))
        # pale and opaque: black can be read on it, and would not on what a dark page shines through
        face = [(1 + part) / 2 for part in colour] if label else (*colour, 0.15)
        square = Rectangle((left, row), 1, 0.88, facecolor=face, edgecolor=GREY)
        ax.add_patch(square)
        ax.text(
            left + 0.5, row + 0.46, label, ha="center", va="center", fontsize=7, color=GREY if not label else "black"
        )


def draw_widths(before: nn.Module, after: nn.Module, alt: str | None = None) -> Picture:
    """How many outputs each layer has: a dashed outline for the network before, a hatched bar for the one after.

    Args:
        before: the network as it was.
        after: the smaller network, with layers of the same names.
        alt: the alternative text; the widths in words if not given.

    Raises:
        ValueError: the two do not have the same layers.
    """
    wide, narrow = _widths(before), _widths(after)
    if list(wide) != list(narrow):
        raise ValueError(f"these are not the same layers: {', '.join(wide)} against {', '.join(narrow)}")
    highest = max(wide.values())
    figure, ax = canvas(width=min(1.0 * len(wide) + 0.5, 12), height=2.3)
    for x, (name, width) in enumerate(wide.items()):
        ax.bar([x], [width], 0.7, color="none", edgecolor=GREY, linestyle="--")
        ax.bar([x], [narrow[name]], 0.7, color=BLUE, alpha=0.7, hatch="///", edgecolor="white")
        ax.text(x, width + 0.03 * highest, f"{narrow[name]} of {width}", ha="center", color=GREY, fontsize=9)
    ax.set_xticks(range(len(wide)), list(wide), fontsize=8)
    ax.set(yticks=[], ylim=(0, 1.15 * highest))
    ax.spines["left"].set_visible(False)
    told = ", ".join(f"{name} {narrow[name]} of {width}" for name, width in wide.items())
    return Picture(figure, alt or f"How many outputs of each layer are left: {told}.")


def _widths(model: nn.Module) -> dict[str, int]:
    return {name.removesuffix(".weight"): layer.weight.shape[0] for name, layer in prunable(model).items()}
