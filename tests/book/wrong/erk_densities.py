"""Plausible wrong answers to exercise 2 of chapter 5; its check has to reject each."""


def _scaled(shapes, density, wish):
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    scale = density * sum(sizes.values()) / sum(wish(*shape) for shape in shapes.values())
    return {name: scale * wish(*shape) / sizes[name] for name, shape in shapes.items()}


def wrong_1(shapes, density):
    """The same density everywhere."""
    return dict.fromkeys(shapes, density)


def wrong_2(shapes, density):
    """Layers may come out denser than whole."""
    return _scaled(shapes, density, lambda rows, columns: rows + columns)


def wrong_3(shapes, density):
    """Cuts at 1, and loses the places that are too many."""
    return {name: min(1.0, d) for name, d in wrong_2(shapes, density).items()}


def wrong_4(shapes, density):
    """Sets the too dense layers whole once, and never looks again."""
    first = wrong_2(shapes, density)
    whole = {name for name, d in first.items() if d > 1}
    if not whole:
        return first
    others = {name: shape for name, shape in shapes.items() if name not in whole}
    if not others:
        return dict.fromkeys(shapes, 1.0)
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    rest = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
    found = wrong_2(others, rest / sum(sizes[name] for name in others))
    return {name: 1.0 if name in whole else found[name] for name in shapes}


def wrong_5(shapes, density):
    """The formula's ratio as it stands, without a factor that meets the budget."""
    return {name: density * (rows + columns) / (rows * columns) for name, (rows, columns) in shapes.items()}


def wrong_6(shapes, density):
    """The same number of places for every layer."""
    return _scaled(shapes, density, lambda _rows, _columns: 1)


def wrong_7(shapes, density):
    """Counts places instead of densities."""
    found = _scaled(shapes, density, lambda rows, columns: rows + columns)
    return {name: found[name] * rows * columns for name, (rows, columns) in shapes.items()}


def wrong_8(shapes, density):
    """Makes the densities' plain mean right, not the number of places."""
    ratio = {name: (rows + columns) / (rows * columns) for name, (rows, columns) in shapes.items()}
    return {name: density * len(shapes) * r / sum(ratio.values()) for name, r in ratio.items()}
