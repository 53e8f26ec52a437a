"""Wrong answers to exercise 2 of chapter 10; its check has to reject each."""

import numpy as np


def wrong_1(validation, test):
    """Chosen by what is reported."""
    name = max(test, key=lambda name: np.mean(test[name]))
    return name, float(np.mean(test[name]))


def wrong_2(validation, test):
    """Reports what it was chosen by."""
    name = max(validation, key=lambda name: np.mean(validation[name]))
    return name, float(np.mean(validation[name]))


def wrong_3(validation, test):
    """One lucky seed."""
    name = max(validation, key=lambda name: max(validation[name]))
    return name, float(np.mean(test[name]))


def wrong_4(validation, test):
    """The worst."""
    name = min(validation, key=lambda name: np.mean(validation[name]))
    return name, float(np.mean(test[name]))


def wrong_5(validation, test):
    """A little bit of the test split is too much."""
    name = max(validation, key=lambda name: np.mean(validation[name]) + np.mean(test[name]))
    return name, float(np.mean(test[name]))


def wrong_6(validation, test):
    """The winner's best seed."""
    name = max(validation, key=lambda name: np.mean(validation[name]))
    return name, max(test[name])


def wrong_7(validation, test):
    """The best number of all on the test split."""
    name = max(validation, key=lambda name: np.mean(validation[name]))
    return name, max(float(np.mean(values)) for values in test.values())


def wrong_8(validation, test):
    """The name alone."""
    return max(validation, key=lambda name: np.mean(validation[name]))
