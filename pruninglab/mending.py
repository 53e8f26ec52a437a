"""Finding the numbers that a forward of the model's own reads (`hidden_dim`, `num_heads`, the size in a `view`).

The smaller model is run beside the steps of the larger one, whose colours tell what shape each step must have. At the
first step that differs, numbers near it that hold an old size are tried until the run gets further.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruninglab.batches import Inputs, call
from pruninglab.colours import Colouring, Step, colours_of, narrow
from pruninglab.colours.colouring import SHUFFLE, shuffled
from pruninglab.colours.moves import SPLITS
from pruninglab.colours.shadows import FILLS, constants_in, numbers_of, results_in, tensors_in
from pruninglab.colours.shapes import shapes_only
from pruninglab.graph import Graph, GraphError, or_none
from pruninglab.slimmed import is_row
from pruninglab.watching import watched

TRIES = 200  # how many numbers of a model are tried before it is said that they cannot be mended


Sizes = list[tuple[int, int, int | None]]  # of one dimension: before, as it must be, as it came out


class Factor(NamedTuple):
    """A number that a step takes from a width, other than before: what its operand has to be multiplied by for that.

    Attributes:
        step: which one.
        where: the module that runs then.
        operand: its shadow.
        ratio: the factor that the operand lacks.
        makers: what made the operand, and could take the factor: (parameter, dimension), and the factors along it.
    """

    step: int
    where: str
    operand: Tensor
    ratio: float
    makers: tuple[tuple[tuple[str, int], Tensor], ...] = ()


Factors = list[Factor]


class _Differs(Exception):
    """The smaller model does not do what the larger one did: at which step, where, and what would be right."""

    def __init__(self, step: int, where: str, what: str, sizes: Sizes) -> None:
        super().__init__(what)
        self.step, self.where, self.what, self.sizes = step, where, what, sizes


class _Beside(TorchDispatchMode):
    """Runs a smaller model and compares the shapes of each step with those that are left of the larger model's."""

    def __init__(self, graph: Graph, removed: Tensor, sizes: dict[int, list[int]]) -> None:
        super().__init__()
        self.graph, self.steps = graph, graph.colouring.steps
        self.in_heads = graph.colouring.in_heads()
        self.light, self.home = graph.colouring.light, graph.colouring.home
        self.gone = or_none(removed)
        self.where: list[str] = [""]
        self.at = 0
        self.rescale: Factors = []
        self.factors: dict[int, float] = {}  # what the results of steps are multiplied by; shapes are known then
        self._sizes = sizes  # of each shadow by its id, remembered from run to run

    def left(self, shadow: Tensor) -> list[int]:
        """The shape that remains of a step's result."""
        key = id(shadow)
        if key not in self._sizes:
            self._sizes[key] = self.graph.left(shadow, self.gone, f"a step in {self.where[-1]}")
        return self._sizes[key]

    def changes(self, step: Step) -> Sizes:
        """Which sizes of a step's results change."""
        shadows = [shadow for shadow in step.shadows if shadow is not None]
        pairs = [pair for shadow in shadows for pair in zip(shadow.shape, self.left(shadow), strict=True)]
        return [(old, new, None) for old, new in pairs if old != new]

    def changes_around(self) -> Sizes:
        """Which sizes change in the nearest step before this moment, and in the nearest after it, that has any."""
        before, after = reversed(self.steps[: self.at]), iter(self.steps[self.at :])
        return [size for steps in (after, before) for size in next(filter(None, map(self.changes, steps)), [])]

    def note(self, step: Step, name: str, function: Any, args: Any, kwargs: Any) -> None:
        """A number that changed was computed from a width. Only before attention is it known what makes up for it."""
        pairs = list(zip(step.numbers, numbers_of(name, function, args, kwargs), strict=False))
        constants = constants_in(args)
        pairs += [(step.constants[i], constants[i]) for i in step.constants.keys() & constants.keys()]
        changed = [(then, now) for then, now in pairs if then != now and then == then]  # a NaN is no other number
        shadows = [shadow for shadow in step.operands if shadow is not None]
        if not changed:
            return
        if not (shadows or any(shadow is not None for shadow in step.shadows)) and name not in FILLS:
            counts = {float(size) for three in self.changes_around() for size in three[:2]}
            if all({then, now} <= counts or {1 / then, 1 / now} <= counts for then, now in changed if then and now):
                return  # a sum over channels becomes a mean over those that are left
        of, plain = shadows[0] if len(shadows) == 1 else None, name.rstrip("_")
        attention = of is not None and bool(torch.isin(colours_of(of), self.in_heads).all())
        known = plain == "mul" or (plain == "div" and step.operands[0] is not None)
        (then, now), *others = changed
        if of is None or not known or others or not now or not attention:
            what = f"{name} takes the number {now:g} instead of {then:g}, which depends on a width"
            raise _Differs(self.at, self.where[-1], what, [])
        self.rescale.append(Factor(self.at, self.where[-1], of, now / then if plain == "div" else then / now))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in SHUFFLE:
            with self:
                return shuffled(*args)
        name, kwargs = function._schema.name.removeprefix("aten::"), kwargs or {}
        step = self.steps[self.at] if self.at < len(self.steps) else None
        if step is not None and step.name != name == "_to_copy":  # whether a tensor is copied depends on where it lies
            return function(*args, **kwargs)
        if step is not None and step.name == "_to_copy" != name:
            self.at += 1
            step = self.steps[self.at]
        if step is not None and step.name != name:  # joining dimensions copies or not, as numbers lie in memory
            if name == "clone" and step.name in SPLITS:
                return function(*args, **kwargs)
            if name in SPLITS and step.name == "clone" and self.steps[self.at + 1].name in SPLITS:
                self.at += 1
                step = self.steps[self.at]
        if step is None or (step.name != name and not {step.name, name} <= SPLITS):
            raise _Differs(self.at, self.where[-1], f"does {name} instead of {step.name if step else 'ending'}", [])
        try:
            out = shapes_only(function, name, args, kwargs, self.home) if self.light else function(*args, **kwargs)
        except Exception as error:
            raise _Differs(self.at, self.where[-1], f"{name} fails: {error}", self.changes(step)) from error
        for result, shadow in () if self.factors else zip(tensors_in(out), step.shadows, strict=False):
            if shadow is not None and list(result.shape) != self.left(shadow):
                left, got = self.left(shadow), list(result.shape)
                sizes = list(zip(shadow.shape, left, got, strict=False)) if len(left) == len(got) else []
                what = f"{name} gives {tuple(got)} instead of {tuple(left)}"
                raise _Differs(self.at, self.where[-1], what, [three for three in sizes if three[1] != three[2]])
        if step.numbers or step.constants:
            self.note(step, name, function, args, kwargs)
        if self.at in self.factors:
            out.mul_(self.factors[self.at])
        self.at += 1
        return out


def mend(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs) -> Factors:
    """Set the numbers that a smaller model's forward reads, until each step has the shape that it must have.

    What else it takes for the same outputs is returned: factors, for `rescale`.

    Args:
        small: the model, already cut; changed in place.
        graph: of the larger model.
        removed: (channels,) bool.
        inputs: what the larger model was traced with.

    Raises:
        GraphError: no number that can be found makes it run; names the module and the operation, and has the channels
            that meet there.
    """
    compare = partial(_compare, small, graph, removed, inputs, {})
    tried, trouble = 0, compare()
    while isinstance(trouble, _Differs):
        for holder, key, old, value in _candidates(small, trouble):
            tried += 1
            holder[key] = value
            after = compare()
            if _further(after, trouble):
                trouble = _also_in_its_like(small, holder, key, old, value, after, compare)
                break
            holder[key] = old
        else:
            tried = TRIES
        if isinstance(trouble, _Differs) and tried >= TRIES:
            where = trouble.where or type(small).__name__
            met = graph.channels_at(trouble.step)
            raise GraphError(
                f"the smaller {type(small).__name__} does not run: in {where}, {trouble.what}", met[removed[met]]
            )
    if graph.colouring.by_place and not graph.whole_heads:
        _check_places(small, graph, removed, inputs)
    names = {name for name, _ in small.named_parameters()}
    return [number._replace(makers=tuple(_makers(names, graph, removed, number))) for number in trouble]


def _check_places(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs) -> None:
    """Where code names channels by their places, see that each layer still reads the channels that it read.

    Raises:
        GraphError: a layer reads others now; names it.
    """
    again = Colouring(small, whole_heads=graph.whole_heads, light=graph.colouring.light)
    again.home = graph.colouring.home  # where what the forward makes itself has its numbers, also without weights
    with watched(small, again.where), again:
        call(small, inputs)
    gone, number = or_none(removed), torch.full((again.known(),), -1, dtype=torch.int64)
    for key, colours in again.births.items():
        before = graph.births[key]
        roots, channels = again.root(colours), before[~gone[before]]
        known = number[roots]
        if not bool(((known == -1) | (known == channels)).all()):
            raise GraphError(f"channels are named by their places: other ones meet at {key[0]} than before")
        number[roots] = channels
    for name, colours in again.reads.items():
        before = graph.number[graph.colouring.reads[name]]
        if not torch.equal(number[again.root(colours)], before[~gone[before]]):
            raise GraphError(f"channels are named by their places: {name} reads other ones than before")


def _further(after: _Differs | Factors, before: _Differs) -> bool:
    """Whether a change led past the trouble there was."""
    return not isinstance(after, _Differs) or after.step > before.step


def _also_in_its_like(
    small: nn.Module,
    holder: Any,
    key: Any,
    old: Any,
    value: Any,
    after: _Differs | Factors,
    compare: Callable[[], _Differs | Factors],
) -> _Differs | Factors:
    """Networks repeat themselves: change the same number in all modules of the same class, if that leads further."""
    owners = [module for module in small.modules() if vars(module) is holder]
    like = [
        vars(module)
        for module in small.modules()
        if owners and type(module) is type(owners[0]) and vars(module).get(key) == old
    ]
    if not like or not isinstance(after, _Differs):
        return after
    for values in like:
        values[key] = value
    all_together = compare()
    if _further(all_together, after):
        return all_together
    for values in like:
        values[key] = old
    return after


def _compare(
    small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs, sizes: dict[int, list[int]]
) -> _Differs | Factors:
    """The first trouble that the smaller model has, or by which factors its numbers differ from the larger one's."""
    beside = _Beside(graph, removed, sizes)
    with watched(small, beside.where), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*does not match num_features")  # an instance norm without parameters
        try:
            with beside:
                call(small, inputs)
        except _Differs as trouble:
            return trouble
        except GraphError:
            raise
        except Exception as error:  # between two steps, such as an assertion
            what = f"{type(error).__name__}: {error}"
            return _Differs(beside.at, beside.where[-1], what, beside.changes_around())
    return beside.rescale


def _candidates(small: nn.Module, trouble: _Differs) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Numbers near the trouble, innermost module first, that hold an old size, and what they might have to be."""
    names = trouble.where.split(".") if trouble.where else []
    holders = [small.get_submodule(".".join(names[:end])) for end in range(len(names), -1, -1)]
    for exact in (True, False):
        for module in holders:
            yield from _numbers(vars(module), trouble, exact)
            config = vars(module).get("config")
            if config is not None and hasattr(config, "__dict__"):
                yield from _numbers(vars(config), trouble, exact)


def _numbers(values: dict[str, Any], trouble: _Differs, exact: bool) -> Iterator[tuple[Any, Any, Any, Any]]:
    for key, value in list(values.items()):
        if key.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield from ((values, key, value, new) for new in _values(value, trouble, exact))
        elif is_row(value):
            for i, item in enumerate(value):
                for new in _values(item, trouble, exact):
                    yield values, key, value, type(value)((*value[:i], new, *value[i + 1 :]))


def _values(value: int, trouble: _Differs, exact: bool) -> Iterator[int]:
    found = set()
    for old, new, got in trouble.sizes:
        if exact:
            guesses = [new] if value == old else []
        else:
            guesses = [value - (got - new)] if got is not None else []
            guesses += [value * new // old] if value % old == 0 or (value * new) % old == 0 else []
        for guess in guesses:
            if guess > 0 and guess != value and guess not in found:
                found.add(guess)
                yield guess


@torch.no_grad()
def rescale(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs, factors: Factors, *, known: bool) -> None:
    """Let weights make up for numbers that the forward computes from sizes.

    Unless it is known that they can, both smaller networks are run: that with the old numbers, and that without.

    Raises:
        GraphError: they cannot, since something lies between them and the number, or reads them beside it; has the
            channels that they make.
    """
    done: dict[tuple[str, int], Tensor] = {}
    for number in factors:
        for place, factor in number.makers:
            if place in done and not torch.equal(done[place], factor):
                both = (done[place] != 1) & (factor != 1) & (done[place] != factor)
                if both.any():
                    raise GraphError(f"{place[0]} would have to make up for two numbers that depend on a width")
                factor = torch.where(factor == 1, done[place], factor)
            done[place] = factor  # once, however often the layer runs, and whoever reads it
    wanted = None if known else _with_old_numbers(small, graph, removed, inputs, factors)
    parameters = dict(small.named_parameters())
    for (name, dim), factor in done.items():
        tensor = parameters[name]
        tensor.mul_(factor.to(tensor).view([-1 if d == dim else 1 for d in range(tensor.ndim)]))
    if not known:
        with watched(small, [""]):
            given = call(small, inputs)
        if wanted is None or not _same(wanted, given):
            names = sorted({name for name, _ in done})
            made = torch.cat([born for (name, _), born in graph.births.items() if name in names])
            raise GraphError(
                f"{type(small).__name__} computes a number from a width (such as attention's 1/√d), and "
                f"{', '.join(names)} cannot make up for it, since something else reads them or lies between",
                torch.unique(made[or_none(removed)[made]]),
            )


def surely(small: nn.Module, factors: Factors) -> bool:
    """Whether weights can make up for all these numbers: torch's own attention reads its queries nowhere else."""
    for number in factors:
        module = small.get_submodule(number.where)
        if type(module) is not nn.MultiheadAttention or module.in_proj_weight is None or module.bias_k is not None:
            return False  # its biases lie elsewhere
        own = f"{number.where}.in_proj_weight", f"{number.where}.in_proj_bias"
        names = {name for (name, _), _ in number.makers}
        if own[0] not in names or not names <= set(own):
            return False
    return True


def _with_old_numbers(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs, factors: Factors) -> Any:
    """What the smaller model would give if its numbers were those of the larger one; None if that cannot be seen."""
    beside = _Beside(graph, removed, {})
    beside.light, beside.factors = False, {number.step: number.ratio for number in factors}
    try:
        with watched(small, beside.where), beside:
            return call(small, inputs)
    except _Differs:  # with numbers it takes other steps than without
        return None


def _same(wanted: Any, given: Any) -> bool:
    """Whether all numbers are, but for rounding; of half precision a few hundredths may be rounding."""
    pairs = zip(results_in(wanted), results_in(given), strict=True)
    return all(
        bool((a - b).abs().max() <= max(1e-9, min(2e4 * torch.finfo(a.dtype).eps, 0.03)) * a.abs().max())
        for a, b in pairs
        if a.is_floating_point() and a.numel() and a.isfinite().all()
    )


def _makers(names: set[str], graph: Graph, removed: Tensor, number: Factor) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """A factor that the forward computes from a size (attention's 1/√d) goes into the layer that made its operand."""
    colouring = graph.colouring
    colours = torch.unique(narrow(number.operand))
    if bool(colouring.is_head(colours).all()):  # a factor of the scores: one of the two that were multiplied takes it
        heads = set(colours.tolist())
        found = [members for head, members in colouring.members_of_head if head in heads and len(members) > 1]
        colours = torch.unique(torch.cat(found[: len(heads)]))
    for (name, dim), born in colouring.births.items():
        if dim < 0 or name not in names or born[0] > colours[-1] or born[-1] < colours[0]:
            continue
        rows = torch.isin(born, colours)
        if rows.any():
            kept = rows[~removed[graph.births[name, dim]]]
            for target in (name, name.removesuffix("weight") + "bias"):
                if target in names:
                    one = torch.ones(len(kept), dtype=torch.float64)
                    yield (target, dim if target == name else 0), one.masked_fill(kept, number.ratio)
