"""Wrong answers to exercise 3 of chapter 4; its check has to reject each."""


def wrong_1(errors):
    """The top alone."""
    return max(errors)


def wrong_2(errors):
    """Above the lower end, not above the mean of both."""
    return max(errors) - min(errors[0], errors[-1])


def wrong_3(errors):
    """The middle instead of the top."""
    return errors[len(errors) // 2] - (errors[0] + errors[-1]) / 2


def wrong_4(errors):
    """Above the lowest point of the way."""
    return max(errors) - min(errors)


def wrong_5(errors):
    """Above the mean of the whole way."""
    return max(errors) - sum(errors) / len(errors)


def wrong_6(errors):
    """Upside down."""
    return (errors[0] + errors[-1]) / 2 - max(errors)
