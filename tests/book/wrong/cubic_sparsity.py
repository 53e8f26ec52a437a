"""Wrong answers to exercise 2 of chapter 2; its check has to reject each."""


def wrong_1(t, final):
    """A straight line."""
    return final * min(max(t, 0), 1)


def wrong_2(t, final):
    """The cube of the time that has passed, not of what is left."""
    return final * min(max(t, 0), 1) ** 3


def wrong_3(t, final):
    """Does not stop at the ends of the window."""
    return final - final * (1 - t) ** 3


def wrong_4(t, final):
    """Runs backwards."""
    t = min(max(t, 0), 1)
    return final * (1 - t) ** 3


def wrong_5(t, final):
    """A square instead of a cube."""
    t = min(max(t, 0), 1)
    return final - final * (1 - t) ** 2


def wrong_6(t, final):
    """Ends at 1 instead of the final sparsity."""
    t = min(max(t, 0), 1)
    return 1 - (1 - t) ** 3


def wrong_7(t, final):
    """Stops at the end, but not before the beginning."""
    return final - final * (1 - min(t, 1)) ** 3
