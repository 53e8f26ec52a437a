"""Fingerprints: the same for what does the same, another for whatever could make a difference."""

import collections
import copy
import functools
import importlib
import math
import os
import subprocess
import sys
import threading
import types
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from pruninglab.criteria import magnitude
from pruninglab.fingerprint import fingerprint, stored_as


def defined(source: str, name: str = "f", **scope):
    """A function as a notebook cell would define it."""
    scope["__name__"] = "__main__"
    exec(source, scope)
    return scope[name]


BASE = "def f(weight, a=1.0):\n    return weight.abs() * a"


@pytest.mark.parametrize(
    "changed",
    [
        "def f(weight, a=1.0):\n    return weight.abs() + a",
        "def f(weight, a=2.0):\n    return weight.abs() * a",
        "def f(weight, *, a=1.0):\n    return weight.abs() * a",
        "def f(weight, a=1.0):\n    return weight.square() * a",
        "def f(weight, a=1.0):\n    return weight.abs() * a * 1",
        "def f(weight, a=1):\n    return weight.abs() * a",
    ],
)
def test_a_fingerprint_changes_with_code_and_defaults(changed):
    assert fingerprint(defined(BASE)) != fingerprint(defined(changed))


def test_a_fingerprint_does_not_change_without_reason():
    one, other = defined(BASE), defined("# a comment\n\n" + BASE)
    first = fingerprint(one)
    assert first == fingerprint(other) == fingerprint(copy.deepcopy(one))
    for _ in range(1000):  # Python rewrites much-used byte code in place
        one(torch.ones(2))
    assert fingerprint(one) == first


def test_a_fingerprint_is_the_same_in_another_process(tmp_path):
    code = (
        "from pruninglab.fingerprint import fingerprint\nimport torch\n"
        "def helper(w): return {'a', 'b', 'c', str(w)}\n"
        "def f(weight, a=1.0): return helper(weight), torch.ones(2), {1, 2} & {3}, lambda x: x + a\n"
        "print(fingerprint(f), fingerprint((f, {'k': f}, 0.1, {'x', 'y', 'z'}, torch.arange(3))))"
    )
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        found.add(done.stdout)
    assert len(found) == 1
    assert found.pop().strip()


def closure(value):
    def f(weight):
        return weight * value

    return f


def test_a_fingerprint_sees_closures():
    assert fingerprint(closure(1)) == fingerprint(closure(1)) != fingerprint(closure(2))
    assert fingerprint(closure(torch.zeros(3))) != fingerprint(closure(torch.tensor([0.0, 0.0, 1.0])))
    assert fingerprint(closure([1, 2])) != fingerprint(closure([1, 3]))
    assert fingerprint(closure(closure(1))) != fingerprint(closure(closure(2)))


def test_a_fingerprint_sees_globals_and_helpers():
    source = "def helper(w):\n    return w * {0}\ndef f(weight):\n    return [helper(w) + SHIFT for w in weight]"
    base = fingerprint(defined(source.format(1), SHIFT=0))
    assert fingerprint(defined(source.format(1), SHIFT=0)) == base
    assert fingerprint(defined(source.format(2), SHIFT=0)) != base
    assert fingerprint(defined(source.format(1), SHIFT=1)) != base
    assert fingerprint(defined(source.format(1), SHIFT=0, unused=5)) == base
    nested = "def helper(w):\n    return w * {0}\ndef f(weight):\n    return (lambda w: helper(w))(weight)"
    assert fingerprint(defined(nested.format(1))) != fingerprint(defined(nested.format(2)))


def test_functions_that_call_each_other_have_a_fingerprint():
    source = "def f(n):\n    return n and g(n - 1)\ndef g(n):\n    return n and f(n - {0})"
    assert fingerprint(defined(source.format(1))) == fingerprint(defined(source.format(1)))
    assert fingerprint(defined(source.format(1))) != fingerprint(defined(source.format(2)))


def test_fingerprints_of_values():
    values = [
        1, 1.0, "1", None, True, (1, 2), [1, 2], {1: 2}, {"1": 2}, torch.ones(2), torch.ones(2, 1),
        torch.ones(2).double(), torch.ones(2).numpy(), b"1", math.nan, partial(closure(1), 1), partial(closure(1), 2),
        partial(closure(1), weight=1), torch.relu, torch.sigmoid, magnitude,
    ]  # fmt: skip
    prints = [fingerprint(value) for value in values]
    assert len(set(prints)) == len(values)
    assert fingerprint(partial(closure(1), 1)) == fingerprint(partial(closure(1), 1))


class Scaled:
    """A criterion that is an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, weight):
        return weight * self.factor


def test_a_fingerprint_sees_what_an_object_holds():
    assert fingerprint(Scaled(1)) == fingerprint(Scaled(1)) != fingerprint(Scaled(2))
    assert fingerprint(Scaled(1).__call__) != fingerprint(Scaled(2).__call__)
    assert fingerprint(Scaled(torch.nn.Linear(2, 2))) != fingerprint(Scaled(torch.nn.Linear(2, 2)))
    itself = Scaled(1)
    itself.factor = [itself]
    assert fingerprint(itself)


def test_a_fingerprint_sees_the_code_of_a_class():
    """A class in a notebook cell that is run again with another body."""
    source = "class C:\n    def __call__(self, w):\n        return self.inner(w)\n"
    source += "    def inner(self, w):\n        return w * {0}\n"
    source += "def f(weight):\n    return C()(weight)\nclass D(C):\n    pass"
    one, other = (defined(source.format(n), "C") for n in (1, 2))
    assert fingerprint(one()) != fingerprint(other())
    assert fingerprint(one()) == fingerprint(defined(source.format(1), "C")())
    assert fingerprint(defined(source.format(1))) != fingerprint(defined(source.format(2)))
    assert fingerprint(defined(source.format(1), "D")()) != fingerprint(defined(source.format(2), "D")())


@pytest.mark.parametrize(
    "body",
    [
        "factor = {0}\n    def __call__(self, w):\n        return w * self.factor",
        "__call__ = staticmethod(lambda w: w * {0})",
        "@classmethod\n    def make(cls, w):\n        return w * {0}",
        "@property\n    def factor(self):\n        return {0}",
        "inner = type('Inner', (), dict(factor={0}))",
    ],
)
def test_a_fingerprint_sees_all_of_a_class(body):
    source = "class C:\n    " + body
    one, other = (defined(source.format(n), "C") for n in (1, 2))
    assert fingerprint(one) == fingerprint(defined(source.format(1), "C")) != fingerprint(other)
    assert fingerprint(one()) != fingerprint(other())


def test_a_fingerprint_of_a_data_class_is_its_settings():
    source = "from dataclasses import dataclass, field\n@dataclass\nclass C:\n    f: object = print\n"
    source += "    n: list = field(default_factory=list)\n    def __call__(self, w):\n        return self.f(w)"
    C = defined(source, "C")
    assert fingerprint(C(closure(1))) == fingerprint(defined(source, "C")(closure(1))) != fingerprint(C(closure(2)))


def test_a_fingerprint_sees_helpers_in_a_module_of_ones_own():
    def using(source):
        helpers = types.ModuleType("my_helpers")
        exec(source, vars(helpers))
        helpers.itself = helpers
        f = defined("def f(weight):\n    return m.itself.h(weight)", m=helpers)
        return fingerprint(f), fingerprint(defined("def g(m):\n    return lambda w: m.h(w)", "g")(helpers))

    source = "def inner(w):\n    return w * {0}\ndef h(w):\n    return inner(w)\nunused = {1}"
    assert using(source.format(1, 1)) == using(source.format(1, 2))
    for one, other in zip(using(source.format(1, 1)), using(source.format(2, 1)), strict=True):
        assert one != other


def test_an_object_without_a_name_of_its_own_has_the_same_fingerprint_every_time():
    class Setting:
        def __init__(self, value):
            self.value = value

    assert fingerprint(Setting(1)) == fingerprint(Setting(1)) != fingerprint(Setting(2))


class Slotted:
    __slots__ = ("power",)

    def __init__(self, power):
        self.power = power

    def __call__(self, weight):
        return weight.abs() ** self.power


def with_attribute(power):
    def f(weight):
        return weight.abs() ** f.power

    f.power = power
    return f


def itself(value):
    values = [value]
    values.append(values)
    return values


def cached(by):
    @functools.lru_cache
    def f(weight):
        return weight * by

    return f


@pytest.mark.parametrize(
    "make",
    [
        Slotted,
        with_attribute,
        itself,
        cached,
        lambda n: pd.DataFrame({"a": [float(n)]}),
        lambda n: pd.Series([float(n)]),
        lambda n: np.array([str(n)]),
        lambda n: np.array([n, None]),
        lambda n: np.array([2000 + n]).astype("datetime64[Y]"),
        lambda n: n * torch.eye(3).to_sparse(),
        lambda n: torch.tensor([n * 1j]).conj(),
        lambda n: np.random.default_rng(n),
        lambda n: torch.Generator().manual_seed(n),
        lambda n: (closure(1), closure(2), closure(n)),
        lambda n: {1: n},
        lambda n: slice(n),
    ],
)
def test_a_fingerprint_sees_what_a_function_uses_of_whatever_kind(make):
    def using(n):
        value = make(n)
        return lambda weight: weight * value

    assert fingerprint(using(1)) == fingerprint(using(1)) != fingerprint(using(2))


def test_the_names_of_arguments_are_part_of_a_function():
    one, other = (defined(f"def f(total, {name}):\n    return total / {name}") for name in ("samples", "positions"))
    assert one.__code__.co_code == other.__code__.co_code
    assert fingerprint(one) != fingerprint(other)


def test_the_same_thing_twice_is_not_two_things():
    one, other = closure(1), closure(2)
    assert fingerprint((one, other, one)) != fingerprint((one, other, other))


def test_what_cannot_be_read_is_not_stored():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"lock.* holds cannot be read"):
        fingerprint(lambda weight: (weight, lock))
    with pytest.warns(UserWarning, match="results are not stored"):
        assert stored_as(lambda weight: (weight, lock)) == ""


def written(tmp_path, monkeypatch, name, body):
    """A module of the user's own, read anew."""
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return name


@pytest.mark.parametrize(
    "source",
    [
        "def f(w):\n    from own_helper import s\n    return s(w)",
        "def f(w):\n    import own_helper\n    return own_helper.s(w)",
        "def f(w):\n    def inner():\n        import own_helper as h\n        return h.s(w)\n    return inner()",
    ],
)
def test_a_fingerprint_sees_what_is_imported_inside(tmp_path, monkeypatch, source):
    written(tmp_path, monkeypatch, "own_helper", "def s(w):\n    return w.abs()")
    before = fingerprint(defined(source))
    assert fingerprint(defined(source)) == before
    written(tmp_path, monkeypatch, "own_helper", "def s(w):\n    return -w.abs()  # another one")
    assert fingerprint(defined(source)) != before


def test_a_fingerprint_sees_a_module_that_is_held():
    def holding(body):
        module = types.ModuleType("held")
        module.__file__ = str(body)
        return [module]

    here, there = (os.path.join(os.path.dirname(__file__), name) for name in ("helpers.py", "networks.py"))
    assert fingerprint(holding(here)) == fingerprint(holding(here))
    assert fingerprint(holding(here)) != fingerprint(holding(there))


def test_a_wrapper_is_not_what_it_wraps():
    @functools.wraps(magnitude)
    def mine(**given):
        return -magnitude(**given)

    @functools.wraps(magnitude)
    def other(**given):
        return 2 * magnitude(**given)

    assert len({fingerprint(f) for f in (magnitude, mine, other)}) == 3


def test_a_file_called_like_one_of_pythons_is_ones_own(tmp_path, monkeypatch):
    def made(body):
        module = types.ModuleType("profile")
        module.__file__ = str(tmp_path / "profile.py")
        monkeypatch.setitem(sys.modules, "profile", module)
        exec(body, vars(module))
        return fingerprint(module.s)

    assert made("def s(w): return w") != made("def s(w): return -w")


class Table(dict):
    """A dictionary that holds more than its items."""


class Names(list):
    """A list likewise."""


@pytest.mark.parametrize(
    "make",
    [
        lambda x: collections.defaultdict(functools.partial(int, x)),
        lambda x: held(Table(a=1), x),
        lambda x: held(Names([1]), x),
        lambda x: {"sign": x}.get,
        lambda x: np.float32(x),
        lambda x: [math.exp, torch.exp][x],
    ],
)
def test_a_fingerprint_sees_what_is_more_than_it_seems(make):
    assert fingerprint(make(0)) == fingerprint(make(0))
    assert fingerprint(make(0)) != fingerprint(make(1))


def held(thing, value):
    thing.more = value
    return thing
