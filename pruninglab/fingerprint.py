"""Telling one function from another by what it does, so that a cached result never answers for a changed criterion."""

import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruninglab.files import digest


def fingerprint(thing: Any) -> str:
    """A hash of a value, or of a function: its code, its defaults, and what it uses from outside, all the way down."""
    return digest(*_parts(thing, set()))


def _parts(thing: Any, seen: set[int]) -> Iterator[object]:
    if isinstance(thing, (torch.Tensor, bytes)):
        yield thing
    elif isinstance(thing, np.ndarray):
        yield torch.from_numpy(np.ascontiguousarray(thing))
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield type(thing).__name__
        for item in sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else thing:
            yield from _parts(item, seen)
    elif isinstance(thing, dict):
        for key, item in thing.items():
            yield key
            yield from _parts(item, seen)
    elif isinstance(thing, partial):
        yield from _parts((thing.func, thing.args, thing.keywords), seen)
    elif isinstance(thing, types.CodeType):
        yield thing.co_code
        yield thing.co_names
        for constant in thing.co_consts:
            yield from _parts(constant, seen)
    elif isinstance(thing, types.FunctionType):
        if id(thing) not in seen:  # functions may call each other in circles
            seen.add(id(thing))
            yield from _function(thing, seen)
    elif isinstance(thing, types.MethodType):
        yield from _parts((thing.__func__, thing.__self__), seen)
    elif isinstance(thing, type):
        yield thing.__qualname__
        if id(thing) not in seen and not _known(thing):
            seen.add(id(thing))
            for name, value in vars(thing).items():
                if not name.startswith("__") or callable(value):  # special names else are Python's own notes
                    yield name
                    yield from _parts(value, seen)
            yield from _parts(thing.__bases__, seen)
    elif isinstance(thing, (staticmethod, classmethod)):
        yield from _parts(thing.__func__, seen)
    elif isinstance(thing, property):
        yield from _parts((thing.fget, thing.fset), seen)
    elif isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)):
        yield thing.__name__
    elif callable(thing) or hasattr(thing, "__dict__") or type(thing).__repr__ is object.__repr__:
        # an object is its class and what it holds
        yield from _parts(type(thing), seen)
        yield getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
        if id(thing) not in seen:
            seen.add(id(thing))
            yield from _parts(getattr(thing, "__dict__", {}), seen)
    else:
        yield repr(thing)


def _known(thing: Any) -> bool:
    """Whether code comes from where a version, or the library's own hash, says all about it."""
    root = str(getattr(thing, "__module__", None) or getattr(thing, "__name__", "")).split(".")[0]
    if root == "__main__":
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return installed or root in ("torch", "numpy", "pruninglab") or root in sys.stdlib_module_names


def _function(function: types.FunctionType, seen: set[int]) -> Iterator[object]:
    code = function.__code__
    closure = {
        name: cell.cell_contents for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    }
    yield function.__qualname__
    yield from _parts((function.__defaults__, function.__kwdefaults__), seen)
    if _known(function):  # the code is known, but not what it was made with: `iterative(3)` is not `iterative(5)`
        yield function.__module__
        yield from _parts(closure, seen)
        return
    yield from _parts(code, seen)
    yield from _used([*_names(code)], function.__globals__ | closure, seen)


def _used(names: Iterable[str], scope: Mapping[str, Any], seen: set[int]) -> Iterator[object]:
    """What code finds under its names; of a module of the user's own, what it finds in there (`m.helper(w)`)."""
    for name in names:
        if name in scope:
            yield name
            yield from _parts(scope[name], seen)
            if isinstance(scope[name], types.ModuleType) and not _known(scope[name]):
                yield from _used([other for other in names if other != name], vars(scope[name]), seen)


def _names(code: types.CodeType) -> Iterator[str]:
    """The outside names that code uses, those of functions inside it too."""
    yield from code.co_names + code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
