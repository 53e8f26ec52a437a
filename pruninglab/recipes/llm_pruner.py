"""LLM-Pruner: what is coupled goes together, judged by the loss's Taylor expansion (Ma et al. 2023).

The paper recovers with LoRA afterwards; any recovery can be passed.
"""

from torch import Tensor, nn

from pruninglab.criteria import Criterion
from pruninglab.language.structures import coupled_scores, cut_parts, find_parts
from pruninglab.masks import Masks
from pruninglab.naming import resolve
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.tasks import Task


def taylor_mixed(weight: Tensor, grad: Tensor, fisher: Tensor) -> Tensor:
    """|w g − ½ w² F|: what the loss changes by to second order, if w goes (Ma et al. 2023, eq. 5, "param_mix").

    The curvature is the diagonal of the empirical Fisher. `taylor` is the same without it, "param_first"; as w² F is
    about (w g)², both order weights alike wherever |w g| is far below 1, as it is in a trained model.
    """
    return (weight * grad - 0.5 * weight.square() * fisher).abs()


def llm_pruner(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 10,
    criterion: str | Criterion = "taylor",
    allocation: str = "uniform",
    spare: tuple[int, int] = (0, 0),
    recovery: str | Recovery | None = None,
    blocks: str | None = None,
) -> Masks:
    """Remove the heads and neurons of a language model whose weights, all together, matter least to the loss.

    The score of a head is the sum over its rows of q, k and v and its columns of o; that of a neuron over its rows of
    gate and up and its column of down. Each block loses the same fraction of both.

    Args:
        model: a language model; changed in place.
        task: for its calibration data and its loss.
        sparsity: the fraction of heads and of neurons to remove from each block that is not spared, in [0, 1).
        seed: which data are drawn.
        samples: how many; the paper takes 10, since gradients of all weights are needed.
        criterion: what a single weight is worth: "taylor", `taylor_mixed`, "magnitude", …
        allocation: "uniform" as in the paper, or "block", "isomorphic", "global" (then `sparsity` is of parameters).
        spare: how many of the first and of the last blocks stay whole; the paper spares (4, 2) of 32.
        recovery: how it is trained afterwards, a name or a function as in `recovery`; not at all if not given.
        blocks: the name of the list of blocks; found if not given.

    Returns:
        The masks, applied. `slim` cuts them out.

    Raises:
        ValueError: an unknown name, a sparsity out of range, no block left. GraphError: nothing can be removed.
    """
    heal = None if recovery is None else resolve("recovery", recovery, RECOVERIES)
    x, y = (part.to(next(model.parameters()).device) for part in task.calibration(samples, seed))
    graph, parts = find_parts(model, x[:1], spare=spare, blocks=blocks)
    scores = coupled_scores(model, graph, parts, criterion, (x, y), loss=task.loss, seed=seed)
    masks = cut_parts(model, graph, parts, scores, sparsity, allocation)
    if heal is not None:
        heal(model, masks, task, seed=seed)
    return masks
