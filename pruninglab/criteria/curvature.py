"""Criteria that use the second derivative of the loss."""

from torch import Tensor

from pruninglab.criteria.base import CRITERIA, criterion


@criterion
def obd(weight: Tensor, fisher: Tensor) -> Tensor:
    """½ H w² with the diagonal H taken from the empirical Fisher (optimal brain damage, LeCun et al. 1989, §2.3).

    The second-order change of the loss when w becomes 0 at a minimum, other weights held fixed. Also named "fisher".
    """
    return 0.5 * fisher * weight.square()


CRITERIA["fisher"] = obd
