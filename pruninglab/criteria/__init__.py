"""How important is it? The rule of what a criterion is (`base`), and the criteria that are built in."""

from pruninglab.criteria.activations import wanda
from pruninglab.criteria.base import CRITERIA, Criterion, Scores, criterion, find, needs, score
from pruninglab.criteria.curvature import obd
from pruninglab.criteria.gradients import snip, taylor
from pruninglab.criteria.weights import magnitude, random

__all__ = [
    "CRITERIA",
    "Criterion",
    "Scores",
    "criterion",
    "find",
    "magnitude",
    "needs",
    "obd",
    "random",
    "score",
    "snip",
    "taylor",
    "wanda",
]
