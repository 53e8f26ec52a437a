"""The second derivative of the loss, as far as one can afford it: products, blocks, and what to remove by them.

`hvp` multiplies by the whole Hessian, `fisher` makes blocks of its stand-in from gradients of single samples, `obs`
removes weights one by one while the others make up for it, and `cbs` asks which of them go together best: a
`quadratic` in zeros and ones, whose minimum `solvers` look for. Nothing here knows tasks or masks.
"""

from pruninglab.curvature.cbs import cbs_select, cbs_update
from pruninglab.curvature.fisher import Gradients, fisher_inverse, fisher_of, gradients, sample_grads
from pruninglab.curvature.hvp import hvp
from pruninglab.curvature.obs import Removal, damped, inverse_of, obs_layer, obs_prune, obs_step, obs_update
from pruninglab.curvature.quadratic import Quadratic, quadratic
from pruninglab.curvature.solvers import anneal, exhaustive, swap_search

__all__ = [
    "Gradients",
    "Quadratic",
    "Removal",
    "anneal",
    "cbs_select",
    "cbs_update",
    "damped",
    "exhaustive",
    "fisher_inverse",
    "fisher_of",
    "gradients",
    "hvp",
    "inverse_of",
    "obs_layer",
    "obs_prune",
    "obs_step",
    "obs_update",
    "quadratic",
    "sample_grads",
    "swap_search",
]
