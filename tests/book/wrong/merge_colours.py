"""Plausible wrong answers to `merge_colours` (chapter 3); `check(…, strictly=True)` rejects each."""


def wrong_1(n, pairs):
    """Renames one colour, and forgets those that had already become it."""
    colour = list(range(n))
    for a, b in pairs:
        colour[b] = colour[a]
    return colour


def wrong_2(n, pairs):
    """Takes the larger of two colours."""
    colour = list(range(n))
    for a, b in pairs:
        high, low = max(colour[a], colour[b]), min(colour[a], colour[b])
        colour = [high if c == low else c for c in colour]
    return colour


def wrong_3(n, pairs):
    """Names only the colours that met something."""
    colour = list(range(n))
    for a, b in pairs:
        high, low = max(colour[a], colour[b]), min(colour[a], colour[b])
        colour = [low if c == high else c for c in colour]
    met = {c for pair in pairs for c in pair}
    return [colour[c] for c in sorted(met)]


def wrong_4(n, pairs):
    """Numbers the groups 0, 1, 2, … instead of naming them by their smallest colour."""
    colour = list(range(n))
    for a, b in pairs:
        high, low = max(colour[a], colour[b]), min(colour[a], colour[b])
        colour = [low if c == high else c for c in colour]
    order = sorted(set(colour))
    return [order.index(c) for c in colour]


def wrong_5(n, pairs):
    """Looks one step up only, not to the root."""
    parent = list(range(n))
    for a, b in pairs:
        low, high = min(parent[a], parent[b]), max(parent[a], parent[b])
        parent[high] = low
    return [parent[c] for c in range(n)]


def wrong_6(n, pairs):
    """Hangs the member, not the root of its group, onto the other: the rest of the group is lost."""
    parent = list(range(n))

    def root(c):
        while parent[c] != c:
            c = parent[c]
        return c

    for a, b in pairs:
        low, high = min(a, b), max(a, b)
        parent[high] = root(low)
    return [root(c) for c in range(n)]


def wrong_7(n, pairs):
    """The first of the pair wins, not the smaller."""
    colour = list(range(n))
    for a, b in pairs:
        new, old = colour[a], colour[b]
        colour = [new if c == old else c for c in colour]
    return colour


def wrong_8(n, pairs):
    """Goes through the pairs twice with a rule that would need more rounds."""
    colour = list(range(n))
    for _ in range(2):
        for a, b in pairs:
            colour[a] = colour[b] = min(colour[a], colour[b])
    return colour


def wrong_9(n, pairs):
    """Gives the groups, not a colour for each."""
    groups = [{c} for c in range(n)]
    for a, b in pairs:
        joined = next(g for g in groups if a in g) | next(g for g in groups if b in g)
        groups = [g for g in groups if not g & joined] + [joined]
    return groups
