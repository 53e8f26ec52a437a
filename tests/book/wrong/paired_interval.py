"""Wrong answers to exercise 1 of chapter 10; its check has to reject each."""

import math

import numpy as np
import scipy.stats


def _around(mean, half):
    return mean, mean - half, mean + half


def wrong_1(ours, theirs):
    """As if the networks were not the same: the spreads of both lists."""
    a, b = np.array(ours), np.array(theirs)
    return _around(
        a.mean() - b.mean(), scipy.stats.t.ppf(0.975, len(a) - 1) * math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    )


def wrong_2(ours, theirs):
    """The spread of one network instead of the mean's error."""
    d = np.subtract(ours, theirs)
    return _around(d.mean(), scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1))


def wrong_3(ours, theirs):
    """A spread divided by n."""
    d = np.subtract(ours, theirs)
    return _around(d.mean(), scipy.stats.t.ppf(0.975, len(d) - 1) * d.std() / math.sqrt(len(d)))


def wrong_4(ours, theirs):
    """The normal distribution: fine for a thousand seeds."""
    d = np.subtract(ours, theirs)
    return _around(d.mean(), 1.96 * d.std(ddof=1) / math.sqrt(len(d)))


def wrong_5(ours, theirs):
    """Theirs − ours."""
    d = np.subtract(theirs, ours)
    return _around(d.mean(), scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))


def wrong_6(ours, theirs):
    """90 % instead of 95 %: one side's quantile."""
    d = np.subtract(ours, theirs)
    return _around(d.mean(), scipy.stats.t.ppf(0.95, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))


def wrong_7(ours, theirs):
    """n degrees of freedom."""
    d = np.subtract(ours, theirs)
    return _around(d.mean(), scipy.stats.t.ppf(0.975, len(d)) * d.std(ddof=1) / math.sqrt(len(d)))


def wrong_8(ours, theirs):
    """The half width instead of the ends."""
    d = np.subtract(ours, theirs)
    half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return d.mean(), -half, half
