"""Pruning Lab: learn, teach and try out neural-network pruning. The public names, nothing else."""

from pruninglab.compare import compare
from pruninglab.criteria import criterion
from pruninglab.masks import Masks
from pruninglab.measure import report
from pruninglab.pruning import prune
from pruninglab.search import find_sparsity
from pruninglab.statistics import collect, statistic
from pruninglab.tasks import task

__version__ = "0.1.0"
__all__ = ["Masks", "collect", "compare", "criterion", "find_sparsity", "prune", "report", "statistic", "task"]
