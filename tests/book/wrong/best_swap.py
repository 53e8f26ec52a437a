"""Plausible wrong answers to exercise 3 of chapter 7; its check has to reject each."""

import torch


def _search(matrix, x, *, pair=-2.0, field=2.0, alone=1.0, pick=torch.argmin):
    """The right answer, with parts to put wrong."""
    x = x.to(matrix)
    ones, zeros = (x == 1).nonzero().flatten(), (x == 0).nonzero().flatten()
    h, d = field * (matrix @ x), alone * matrix.diagonal()
    change = (d - h)[ones][:, None] + (d + h)[zeros] + pair * matrix[ones][:, zeros]
    a, b = divmod(int(pick(change)), len(zeros))
    return int(ones[a]), int(zeros[b]), float(change[a, b])


def wrong_1(matrix, x):
    """Forgets what the two have to do with each other."""
    return _search(matrix, x, pair=0.0)


def wrong_2(matrix, x):
    """Counts the pair once."""
    return _search(matrix, x, pair=-1.0)


def wrong_3(matrix, x):
    """Adds the pair."""
    return _search(matrix, x, pair=2.0)


def wrong_4(matrix, x):
    """Forgets what each does alone."""
    return _search(matrix, x, alone=0.0)


def wrong_5(matrix, x):
    """The field once, not twice."""
    return _search(matrix, x, field=1.0)


def wrong_6(matrix, x):
    """The diagonal only."""
    return _search(matrix, x, field=0.0, pair=0.0)


def wrong_7(matrix, x):
    """The pair that raises E most."""
    return _search(matrix, x, pick=torch.argmax)


def wrong_8(matrix, x):
    """The places the wrong way round."""
    i, j, change = _search(matrix, x)
    return j, i, change


def wrong_9(matrix, x):
    """The best to come back and the best to go, each for itself."""
    i, j, _ = _search(matrix, x, pair=0.0)
    after = x.to(matrix)
    before = after.clone()
    after[i], after[j] = 0.0, 1.0
    return i, j, float(after @ matrix @ after - before @ matrix @ before)


def wrong_10(matrix, x):
    """The first exchange that helps."""
    before = x.to(matrix)
    for i in range(len(x)):
        for j in range(len(x)):
            if x[i] and not x[j]:
                after = before.clone()
                after[i], after[j] = 0.0, 1.0
                change = float(after @ matrix @ after - before @ matrix @ before)
                if change < 0:
                    return i, j, change
    return _search(matrix, x)


def wrong_11(matrix, x):
    """Makes the exchange in x."""
    i, j, change = _search(matrix, x)
    x[i], x[j] = False, True
    return i, j, change


def wrong_12(matrix, x):
    """Any two weights, whether gone or not."""
    change = matrix.diagonal()[:, None] + matrix.diagonal() - 2 * matrix
    change.fill_diagonal_(torch.inf)
    i, j = divmod(int(change.argmin()), len(x))
    return i, j, float(change[i, j])


def wrong_13(matrix, x):
    """Gives up where nothing helps."""
    i, j, change = _search(matrix, x)
    return (i, j, change) if change < 0 else None
