"""FLAP: remove heads and neurons that hardly fluctuate, and keep their mean in a bias (An et al. 2024).

No training and no gradients: one walk over the calibration data. Three differences from the authors' code, which is
not what their paper says: the variance is the variance (theirs mixes two means), heads' scores are not squared before
they are standardised, and queries that share keys and values go together.
"""

from torch import nn

from pruninglab.language.flap import compensate, fluctuation, head_scores
from pruninglab.language.structures import choose, cut_parts, find_parts, reader_scores
from pruninglab.masks import Masks
from pruninglab.tasks import Task


def flap(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 128,
    allocation: str = "global",
    bias: bool = True,
    blocks: str | None = None,
) -> Masks:
    """Remove heads and neurons of a language model by how much their part of the reader's input varies.

    A column of a reader (o_proj, down_proj) scores Var(x_j) ‖W_:j‖₂². Scores are standardised over each reader, and
    that of a head is the mean of its columns'. Then all heads and neurons compete by score, and go until the share of
    parameters is reached, of which a head has many times what a neuron has.

    A Llama has no biases. With `bias` its readers get them, so its config must say `attention_bias=True` and
    `mlp_bias=True`, and other layers need such of zero: `language.published.fit_config` sees to it.

    Args:
        model: a language model; changed in place.
        task: for its calibration data.
        sparsity: the fraction of the parameters of heads and neurons to remove, in [0, 1).
        seed: which data are drawn.
        samples: how many.
        allocation: "global" (AL-AM in the paper), "isomorphic" (AL-MM), "block" (UL-MM) or "uniform" (UL-UM).
        bias: whether what goes leaves its mean in the reader's bias.
        blocks: the name of the list of blocks; found if not given.

    Returns:
        The masks, applied. `slim` cuts them out.

    Raises:
        ValueError: an unknown allocation, or a sparsity out of range. GraphError: nothing can be removed.
    """
    x, _ = task.calibration(samples, seed)
    x = x.to(next(model.parameters()).device)
    graph, parts = find_parts(model, x[:1], blocks=blocks)
    columns, found = reader_scores(model, parts, fluctuation, x, also=["input_mean"], blocks=blocks)
    scores = head_scores(columns)
    gone = choose(parts, scores, sparsity, allocation)
    if bias:
        compensate(model, parts, gone, {name: values["input_mean"] for name, values in found.items()})
    return cut_parts(model, graph, parts, scores, sparsity, allocation)
