"""Pruning Lab: learn, teach and try out neural-network pruning. The public names, nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

from pruninglab.compare import compare
from pruninglab.criteria import criterion
from pruninglab.masks import Masks
from pruninglab.measure import report
from pruninglab.pruning import prune
from pruninglab.search import find_sparsity
from pruninglab.statistics import collect, statistic
from pruninglab.tasks import task

if TYPE_CHECKING:
    from pruninglab.curves import distortion_curves
    from pruninglab.graph import channel_groups
    from pruninglab.recipes import recipe
    from pruninglab.surgery import slim

# Imported when they are asked for.
_LATER = {"channel_groups": "graph", "distortion_curves": "curves", "recipe": "recipes", "slim": "surgery"}

__version__ = "0.1.0"
__all__ = [
    "Masks",
    "channel_groups",
    "collect",
    "compare",
    "criterion",
    "distortion_curves",
    "find_sparsity",
    "prune",
    "recipe",
    "report",
    "slim",
    "statistic",
    "task",
]


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f"pruninglab.{_LATER[name]}"), name)
    raise AttributeError(f"module 'pruninglab' has no attribute {name!r}")
