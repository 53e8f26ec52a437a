"""How important is it? The rule of what a criterion is (`base`), and the criteria that are built in."""

from pruninglab.criteria.activations import wanda
from pruninglab.criteria.base import CRITERIA, Criterion, Scores, criterion, find, needs, score
from pruninglab.criteria.blocks import block_influence
from pruninglab.criteria.curvature import obd, obs, woodfisher
from pruninglab.criteria.filters import (
    beta_rank,
    fpgm,
    group_l2,
    hrank,
    l1_filter,
    l2_filter,
    relevance_filter,
    relevance_filter_alphabeta,
    relevance_filter_epsilon,
    slimming,
    taylor_filter,
)
from pruninglab.criteria.flow import grasp, synflow
from pruninglab.criteria.gradients import snip, taylor
from pruninglab.criteria.weights import magnitude, random

__all__ = [
    "CRITERIA",
    "Criterion",
    "Scores",
    "beta_rank",
    "block_influence",
    "criterion",
    "find",
    "fpgm",
    "grasp",
    "group_l2",
    "hrank",
    "l1_filter",
    "l2_filter",
    "magnitude",
    "needs",
    "obd",
    "obs",
    "random",
    "relevance_filter",
    "relevance_filter_alphabeta",
    "relevance_filter_epsilon",
    "score",
    "slimming",
    "snip",
    "synflow",
    "taylor",
    "taylor_filter",
    "wanda",
    "woodfisher",
]
