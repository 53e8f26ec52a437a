"""Telling one function from another by what it does, so that a cached result never answers for a changed criterion."""

import copyreg
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruninglab.files import digest

DESCRIPTORS = (  # what a class that is written in C is made of
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
)
Seen = dict[int, tuple[int, object]]  # by their ids, what was met before, in which order; held, so that ids stay taken


def fingerprint(thing: Any) -> str:
    """A hash of a value, or of a function: its code, its defaults, and what it uses from outside, all the way down.

    Raises:
        TypeError: it uses something whose state cannot be read (a lock, an open file).
    """
    return digest(*_parts(thing, {}))


def stored_as(*things: Any) -> str:
    """The fingerprint under which a result is stored; "" with a warning where there is none, so that it is not."""
    try:
        return fingerprint(things)
    except TypeError as error:
        warnings.warn(
            f"results are not stored, for it cannot be told later whether they still hold: {error}", stacklevel=3
        )
        return ""


def _parts(thing: Any, seen: Seen) -> Iterator[object]:
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
        yield repr(thing)
        return
    if id(thing) in seen:  # functions may call each other in circles, and a list may hold itself
        yield f"again {seen[id(thing)][0]}"
        return
    seen[id(thing)] = len(seen), thing
    if isinstance(thing, torch.Tensor):
        yield thing.layout
        yield thing.detach().to_dense().resolve_conj().resolve_neg()
    elif isinstance(thing, np.ndarray):
        yield thing.dtype, thing.shape
        if thing.dtype.hasobject:
            yield from _parts(thing.tolist(), seen)
        else:
            yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield type(thing).__name__, len(thing)
        for item in sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else thing:
            yield from _parts(item, seen)
    elif isinstance(thing, (dict, types.MappingProxyType)):
        yield "dict", len(thing)
        for pair in thing.items():
            yield from _parts(pair, seen)
    elif isinstance(thing, partial):
        yield from _parts((thing.func, thing.args, thing.keywords), seen)
    elif isinstance(thing, types.CodeType):
        yield thing.co_code
        yield thing.co_names
        yield thing.co_varnames[: thing.co_argcount + thing.co_kwonlyargcount]  # they say what is asked for
        for constant in thing.co_consts:
            yield from _parts(constant, seen)
    elif isinstance(thing, types.FunctionType):
        yield from _function(thing, seen)
    elif isinstance(thing, types.MethodType):
        yield from _parts((thing.__func__, thing.__self__), seen)
    elif isinstance(thing, type):
        yield thing.__qualname__
        if not _known(thing):
            for name, value in vars(thing).items():
                if not name.startswith("__") or callable(value):  # special names else are Python's own notes
                    yield name
                    yield from _parts(value, seen)
            yield from _parts(thing.__bases__, seen)
    elif isinstance(thing, (staticmethod, classmethod)):
        yield from _parts(thing.__func__, seen)
    elif isinstance(thing, property):
        yield from _parts((thing.fget, thing.fset), seen)
    elif isinstance(thing, cached_property):
        yield from _parts(thing.func, seen)
    elif isinstance(thing, (types.ModuleType, types.BuiltinFunctionType, *DESCRIPTORS)):
        yield thing.__name__
    else:
        yield from _object(thing, seen)


def _object(thing: Any, seen: Seen) -> Iterator[object]:
    """Its class, and what it holds: what a copy of it would be made from (slots too, and what is not Python's)."""
    yield from _parts(type(thing), seen)
    reduce = copyreg.dispatch_table.get(type(thing))
    try:
        made_from = reduce(thing) if reduce else thing.__reduce_ex__(2)
    except Exception as error:  # a TypeError, or what its class raises in its place
        raise TypeError(f"what {thing!r} holds cannot be read ({error})") from None
    if isinstance(made_from, str):  # a name
        yield made_from
        yield from _parts(getattr(thing, "__wrapped__", None), seen)
        return
    for part in made_from:
        yield from _parts(list(part) if isinstance(part, Iterator) else part, seen)


def _known(thing: Any) -> bool:
    """Whether code comes from where a version, or the library's own hash, says all about it."""
    root = str(getattr(thing, "__module__", None) or getattr(thing, "__name__", "")).split(".")[0]
    if root == "__main__":
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return installed or root in ("torch", "numpy", "pruninglab") or root in sys.stdlib_module_names


def _function(function: types.FunctionType, seen: Seen) -> Iterator[object]:
    code = function.__code__
    closure = {
        name: cell.cell_contents for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    }
    yield function.__qualname__
    yield from _parts((function.__defaults__, function.__kwdefaults__, vars(function)), seen)
    if _known(function):  # the code is known, but not what it was made with: `iterative(3)` is not `iterative(5)`
        yield function.__module__
        yield from _parts(closure, seen)
        return
    yield from _parts(code, seen)
    yield from _used([*_names(code)], function.__globals__ | closure, seen)


def _used(names: Iterable[str], scope: Mapping[str, Any], seen: Seen) -> Iterator[object]:
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
