"""Plausible wrong answers to exercise 1 of chapter 5; its check has to reject each."""

import torch


def _right(weights, total=None):
    sizes = [weight.detach().abs() for weight in weights]
    into = [torch.ones(sizes[0].shape[1])]
    for size in sizes:
        into.append(size @ into[-1])
    out = [torch.ones(sizes[-1].shape[0])]
    for size in reversed(sizes[1:]):
        out.insert(0, out[0] @ size)
    total = into[-1].sum() if total is None else total
    return [b[:, None] * size * a / total for b, size, a in zip(out, sizes, into, strict=False)]


def wrong_1(weights):
    """Not divided by R."""
    return _right(weights, total=1)


def wrong_2(weights):
    """Signed weights: paths cancel each other."""
    product = weights[0].new_ones(weights[0].shape[1])
    leaves = [torch.ones(weights[-1].shape[0])]
    for weight in reversed(weights[1:]):
        leaves.insert(0, leaves[0] @ weight)
    scores = []
    for weight, leaf in zip(weights, leaves, strict=True):
        scores.append(leaf[:, None] * weight * product)
        product = weight @ product
    return [score / product.sum() for score in scores]


def wrong_3(weights):
    """Magnitudes, made to sum to 1 in each layer: no flow at all."""
    return [weight.abs() / weight.abs().sum() for weight in weights]


def wrong_4(weights):
    """Only what arrives, not what leaves."""
    into, scores = weights[0].new_ones(weights[0].shape[1]), []
    for weight in weights:
        score = weight.detach().abs() * into
        scores.append(score / score.sum())
        into = weight.detach().abs() @ into
    return scores


def wrong_5(weights):
    """Squares instead of magnitudes."""
    return _right([weight.square() for weight in weights])


def wrong_6(weights):
    """Takes magnitudes in place."""
    for weight in weights:
        weight.detach().abs_()
    return _right(weights)


def wrong_7(weights):
    """Divides by the number of outputs as well."""
    return [score / len(weights[-1]) for score in _right(weights)]


def wrong_8(weights):
    """The last layer first."""
    return _right(weights)[::-1]


def wrong_9(weights):
    """One long tensor."""
    return torch.cat([score.flatten() for score in _right(weights)])


def wrong_10(weights):
    """The gradient of R, without the weight."""
    return [score / weight.detach().abs() for score, weight in zip(_right(weights), weights, strict=True)]


def wrong_11(weights):
    """Scores that still carry gradients."""
    scores = _right(weights)
    return [score * weight.abs() / weight.detach().abs() for score, weight in zip(scores, weights, strict=True)]
