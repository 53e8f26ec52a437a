"""Plausible wrong answers to exercise 1 of chapter 7; its check has to reject each."""

import torch


def _step(weights, hessian, *, choose=None, sign=-1.0, column=None, half=0.5):
    """The right step, with parts to put wrong."""
    inverse = torch.linalg.inv(hessian)
    diagonal = inverse.diagonal()
    q = int((weights.square() / diagonal if choose is None else choose(weights, inverse)).argmin())
    move = inverse[:, q] / diagonal[q] if column is None else column(inverse, q)
    left = weights + sign * weights[q] * move
    left[q] = 0.0
    return q, left, half * float(weights[q] ** 2 / diagonal[q])


def wrong_1(weights, hessian):
    """The smallest weight."""
    return _step(weights, hessian, choose=lambda w, _: w.abs())


def wrong_2(weights, hessian):
    """OBD's choice: the diagonal of H instead of its inverse's."""
    return _step(weights, hessian, choose=lambda w, _: w.square() * hessian.diagonal())


def wrong_3(weights, hessian):
    """Nobody makes up for anything."""
    q, left, cost = _step(weights, hessian)
    left = weights.clone()
    left[q] = 0.0
    return q, left, cost


def wrong_4(weights, hessian):
    """The others move the wrong way."""
    return _step(weights, hessian, sign=1.0)


def wrong_5(weights, hessian):
    """Without the half."""
    return _step(weights, hessian, half=1.0)


def wrong_6(weights, hessian):
    """A column of H instead of its inverse."""
    return _step(weights, hessian, column=lambda _, q: hessian[:, q] / hessian[q, q])


def wrong_7(weights, hessian):
    """Forgets to divide by the diagonal, and clears the place by hand."""
    return _step(weights, hessian, column=lambda inverse, q: inverse[:, q])


def wrong_8(weights, hessian):
    """Writes into the weights."""
    q, left, cost = _step(weights, hessian)
    return q, weights.copy_(left), cost


def wrong_9(weights, hessian):
    """Multiplies by the diagonal of the inverse."""
    return _step(weights, hessian, choose=lambda w, inverse: w.square() * inverse.diagonal())


def wrong_10(weights, hessian):
    """Leaves the weight out instead of setting it to 0."""
    q, left, cost = _step(weights, hessian)
    return q, torch.cat([left[:q], left[q + 1 :]]), cost


def wrong_11(weights, hessian):
    """The change instead of the weights."""
    q, left, cost = _step(weights, hessian)
    return q, left - weights, cost


def wrong_12(weights, hessian):
    """A tensor for the place."""
    q, left, cost = _step(weights, hessian)
    return torch.tensor(q), left, cost
