"""ShortGPT: leave out the blocks that turn what passes through them least (Men et al. 2024).

Or so many in a row as turn it least together (Gromov et al. 2024).
"""

from torch import nn

from pruninglab.language.blocks import find_blocks
from pruninglab.language.depth import distances, drop_blocks, influences
from pruninglab.masks import Masks
from pruninglab.naming import resolve
from pruninglab.pruning import check_sparsity
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.tasks import Task


def shortgpt(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 128,
    contiguous: bool = False,
    recovery: str | Recovery | None = None,
    blocks: str | None = None,
) -> Masks:
    """Remove whole blocks of a language model, chosen in one shot.

    Args:
        model: a language model; changed in place.
        task: for its calibration data.
        sparsity: the fraction of blocks to remove, in [0, 1); rounded to whole blocks.
        seed: which data are drawn.
        samples: how many.
        contiguous: remove blocks in a row, where the last token's state before and after all of them differs by the
            smallest angle (Gromov et al.), and not those with the least block influence, wherever they are.
        recovery: how it is trained afterwards, a name or a function as in `recovery`; not at all if not given.
        blocks: the name of the list of blocks; found if not given.

    Returns:
        The masks, applied. `language.depth.shorten(slim(model, masks, x))` is really shorter.

    Raises:
        ValueError: a sparsity out of range, or one that leaves no block. GraphError: a block that cannot go.
    """
    heal = None if recovery is None else resolve("recovery", recovery, RECOVERIES)
    x = task.calibration(samples, seed)[0].to(next(model.parameters()).device)
    names = list(find_blocks(model, blocks))
    n = len(names) - int(len(names) * (1 - check_sparsity(sparsity)) + 0.5)
    if n == len(names):
        raise ValueError(f"sparsity={sparsity:g} leaves none of {n} blocks")
    if not n:
        removed = []
    elif contiguous:
        found = distances(model, x, n, blocks=blocks)
        start = names.index(min(found, key=found.__getitem__))
        removed = names[start : start + n]
    else:
        influence = influences(model, x, blocks)
        removed = sorted(names, key=influence.__getitem__)[:n]
    masks = drop_blocks(model, removed, x[:1], blocks)
    if heal is not None:
        heal(model, masks, task, seed=seed)
    return masks
