"""Telling one function from another by what it does, so that a cached result never answers for a changed criterion."""

import sys
import types
from collections.abc import Iterator
from functools import partial
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
            yield from _parts([value for value in vars(thing).values() if isinstance(value, types.FunctionType)], seen)
            yield from _parts(thing.__bases__, seen)
    elif isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)):
        yield thing.__name__
    elif callable(thing) or type(thing).__repr__ is object.__repr__:  # an object is its class and what it holds
        yield from _parts(type(thing), seen)
        yield getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
        if id(thing) not in seen:
            seen.add(id(thing))
            yield from _parts(getattr(thing, "__dict__", {}), seen)
    else:
        yield repr(thing)


def _known(thing: Any) -> bool:
    """Whether code comes from where a version, or the library's own hash, says all about it."""
    root = (getattr(thing, "__module__", None) or "").split(".")[0]
    return root in ("torch", "numpy", "pruninglab") or root in sys.stdlib_module_names


def _function(function: types.FunctionType, seen: set[int]) -> Iterator[object]:
    yield function.__qualname__
    if _known(function):
        yield function.__module__
        return
    yield from _parts(function.__code__, seen)
    yield from _parts((function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], seen)


def _names(code: types.CodeType) -> Iterator[str]:
    """The outside names that code uses, those of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
