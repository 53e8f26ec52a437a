"""SliceGPT: a narrower stream, by the principal components of what flows in it (Ashkboos et al. 2024)."""

from torch import nn

from pruninglab.language.slicegpt import slice_stream
from pruninglab.masks import Masks
from pruninglab.pruning import check_sparsity
from pruninglab.tasks import Task


def slicegpt(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 128,
    multiple_of: int = 8,
    basis: str = "pca",
    blocks: str | None = None,
) -> Masks:
    """Turn the stream of a language model to its principal components, and empty the last of them. No training.

    What is removed are no weights that were there before: the model is another one afterwards, turned, and with a
    matrix in each shortcut. So no two slicings can be compared by their masks, a second one would turn again, and
    fewer parameters go than directions: count them after `slim`.

    Args:
        model: a language model of Llama's kind; changed in place.
        task: for its calibration data.
        sparsity: the fraction of the stream's directions to remove, in [0, 1); with 0 the model computes what it did.
        seed: which data are drawn, and of a random basis.
        samples: how many.
        multiple_of: the width is rounded down to a multiple of this, as processors like it.
        basis: "pca", or "random" to compare with.
        blocks: the name of the list of blocks; found if not given.

    Returns:
        Masks of the turned model, applied. `slim` makes it narrower.

    Raises:
        ValueError: a sparsity out of range, or one that leaves no direction; an unknown basis; a model of another kind.
    """
    x = task.calibration(samples, seed)[0].to(next(model.parameters()).device)
    full = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    width = int(full * (1 - check_sparsity(sparsity)) + 1e-9)
    width -= width % multiple_of if width < full else 0
    if not width:
        raise ValueError(f"sparsity={sparsity:g} leaves less than {multiple_of} of the stream's {full} directions")
    return slice_stream(model, x, width, basis=basis, seed=seed, blocks=blocks)
