"""Pruning Lab: learn, teach and try out neural-network pruning. The public names, nothing else."""

from pruninglab.criteria import criterion
from pruninglab.masks import Masks
from pruninglab.pruning import prune
from pruninglab.statistics import collect, statistic

__all__ = ["Masks", "collect", "criterion", "prune", "statistic"]
__version__ = "0.1.0"
