"""Wrong answers to the exercise of chapter 0; its check has to reject each."""


def wrong_1(mask):
    """Gives the fraction kept."""
    return float(mask.float().mean())


def wrong_2(mask):
    """Gives a tensor, not a number."""
    return 1 - mask.float().mean()


def wrong_3(mask):
    """Counts rows instead of entries."""
    return 1 - float(mask.all(dim=-1).float().mean())


def wrong_4(mask):
    """Gives a count."""
    return float((~mask).sum())


def wrong_5(mask):
    """Gives percent."""
    return 100 * (1 - float(mask.float().mean()))


def wrong_6(mask):
    """Divides by the size of a matrix, whatever the shape is."""
    return 1 - int(mask.sum()) / (mask.shape[0] * mask.shape[1])


def wrong_7(mask):
    """Always says the same."""
    return 0.25
