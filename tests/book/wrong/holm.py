"""Wrong answers to exercise 3 of chapter 10; its check has to reject each."""


def wrong_1(p_values, level=0.05):
    """As if each were alone."""
    return [p <= level for p in p_values]


def wrong_2(p_values, level=0.05):
    """Bonferroni: the same hurdle for all."""
    return [p <= level / len(p_values) for p in p_values]


def wrong_3(p_values, level=0.05):
    """Does not stop at the first that fails."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [False] * len(p_values)
    for rank, i in enumerate(order):
        found[i] = p_values[i] <= level / (len(order) - rank)
    return found


def wrong_4(p_values, level=0.05):
    """In the order of the sorted p-values."""
    found, going = [], True
    for rank, p in enumerate(sorted(p_values)):
        going = going and p <= level / (len(p_values) - rank)
        found.append(going)
    return found


def wrong_5(p_values, level=0.05):
    """From the largest: a hurdle that grows the wrong way."""
    order = sorted(range(len(p_values)), key=lambda i: -p_values[i])
    found = [False] * len(p_values)
    for rank, i in enumerate(order):
        found[i] = p_values[i] <= level / (len(order) - rank)
    return found


def wrong_6(p_values, level=0.05):
    """The level is always 5 %."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > 0.05 / (len(order) - rank):
            break
        found[i] = True
    return found


def wrong_7(p_values, level=0.05):
    """Says which fail."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [True] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(order) - rank):
            break
        found[i] = False
    return found


def wrong_8(p_values, level=0.05):
    """Steps up from the largest, as Hochberg does; the smaller hurdles come too late."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, going = [False] * len(p_values), False
    for rank in reversed(range(len(order))):
        going = going or p_values[order[rank]] <= level / (rank + 1)
        found[order[rank]] = going
    return found
