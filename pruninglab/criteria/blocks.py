"""Criteria of whole residual blocks, for the unit "layer"."""

import torch.nn.functional as F
from torch import Tensor

from pruninglab.criteria.base import criterion


@criterion
def block_influence(block_input: Tensor, block_output: Tensor) -> Tensor:
    """1 − mean cosine between what enters a block and what leaves it (Men et al. 2024, ShortGPT, eq. 1).

    The mean is over samples and positions; the vectors are those of the channels: dimension 1 of pictures
    (n, c, h, w), the last of tokens (n, t, c). A block that hardly turns its input has little influence.
    """
    channels = 1 if block_input.ndim == 4 else -1
    return 1 - F.cosine_similarity(block_input.double(), block_output.double(), dim=channels).mean()
