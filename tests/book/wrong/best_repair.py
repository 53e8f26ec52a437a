"""Plausible wrong answers to exercise 2 of chapter 8; its check has to reject each."""

import torch


def _repair(weight, hessian, keep, *, solve=torch.linalg.solve, sign=1.0, start=1.0):
    """The right answer, with parts to put wrong."""
    left = torch.zeros_like(weight)
    moved = solve(hessian[keep][:, keep], hessian[keep][:, ~keep] @ weight[~keep])
    left[keep] = start * weight[keep] + sign * moved
    return left


def wrong_1(weight, hessian, keep):
    """Nobody makes up for anything."""
    return weight * keep


def wrong_2(weight, hessian, keep):
    """Those that stay move the wrong way."""
    return _repair(weight, hessian, keep, sign=-1.0)


def wrong_3(weight, hessian, keep):
    """Each that stays helps as if it were alone: the diagonal of H_SS."""
    return _repair(weight, hessian, keep, solve=lambda block, right: right / block.diagonal())


def wrong_4(weight, hessian, keep):
    """A block of the inverse instead of the inverse of a block."""
    inverse = torch.linalg.inv(hessian)[keep][:, keep]
    return _repair(weight, hessian, keep, solve=lambda _, right: inverse @ right)


def wrong_5(weight, hessian, keep):
    """The surgeon's step for each that goes, added up: each counts on the help of the others that go."""
    inverse = torch.linalg.inv(hessian)
    left = weight.clone()
    for q in (~keep).nonzero().flatten().tolist():
        left = left - weight[q] / inverse[q, q] * inverse[:, q]
    return left * keep


def wrong_6(weight, hessian, keep):
    """Only the weights that stay."""
    return _repair(weight, hessian, keep)[keep]


def wrong_7(weight, hessian, keep):
    """The change instead of the weights."""
    return _repair(weight, hessian, keep) - weight


def wrong_8(weight, hessian, keep):
    """Leaves those that go where they were."""
    return torch.where(keep, _repair(weight, hessian, keep), weight)


def wrong_9(weight, hessian, keep):
    """Writes into the weights."""
    return weight.copy_(_repair(weight, hessian, keep))


def wrong_10(weight, hessian, keep):
    """The mask the wrong way round."""
    return _repair(weight, hessian, ~keep)


def wrong_11(weight, hessian, keep):
    """Only what is added, without what was there."""
    return _repair(weight, hessian, keep, start=0.0)


def wrong_12(weight, hessian, keep):
    """Forgets to solve."""
    return _repair(weight, hessian, keep, solve=lambda _, right: right)


def wrong_13(weight, hessian, keep):
    """Least squares with H instead of X: the error counted with H²."""
    left = torch.zeros_like(weight)
    left[keep] = torch.linalg.lstsq(hessian[:, keep], (hessian @ weight)[:, None]).solution[:, 0]
    return left


def wrong_14(weight, hessian, keep):
    """A damping that is not small."""
    ridge = 0.01 * hessian.diagonal().mean() * torch.eye(len(weight), dtype=weight.dtype)
    return _repair(weight, hessian + ridge, keep)


def wrong_15(weight, hessian, keep):
    """Multiplies by the block where it should solve."""
    return _repair(weight, hessian, keep, solve=lambda block, right: block @ right)


def wrong_16(weight, hessian, keep):
    """Nearly zero is not zero: descends towards the best."""
    left = weight.clone()
    rate = 1 / torch.linalg.matrix_norm(hessian, 2)
    for _ in range(2000):
        left = (left - rate * (hessian @ (left - weight))) * torch.where(keep, 1.0, 0.5)
    return left


def wrong_17(weight, hessian, keep):
    """Does not think of a row that loses everything."""
    best = _repair(weight, hessian, keep)
    return best if best.any() else weight
