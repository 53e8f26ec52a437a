"""Telling one function from another by what it does, so that a cached result never answers for a changed criterion."""

import copyreg
import dis
import importlib
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
STANDARD = sysconfig.get_path("stdlib")
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
    if type(thing) in (type(None), bool, int, float, complex, str, bytes):
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
    elif isinstance(thing, np.generic):
        yield thing.dtype, repr(thing)
    elif type(thing) in (list, tuple, set, frozenset):  # and no class made of one, which may hold more
        yield type(thing).__name__, len(thing)
        for item in sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else thing:
            yield from _parts(item, seen)
    elif type(thing) in (dict, types.MappingProxyType):
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
    elif isinstance(thing, types.ModuleType):
        yield thing.__name__, "" if _known(thing) else _content(thing)
    elif isinstance(thing, types.BuiltinFunctionType):
        yield thing.__module__, thing.__name__
        if not isinstance(thing.__self__, types.ModuleType):  # a method: `table.get`
            yield from _parts(thing.__self__, seen)
    elif isinstance(thing, DESCRIPTORS):
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
    root = _module(thing).split(".")[0]
    if root == "__main__":
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    of_python = root in sys.stdlib_module_names and (not file or Path(file).is_relative_to(STANDARD))
    return installed or of_python or root in ("torch", "numpy", "pruninglab")


def _module(thing: Any) -> str:
    """The name of the module where a thing's code really stands, whatever it says of itself (`functools.wraps`)."""
    if isinstance(thing, types.FunctionType):
        return str(thing.__globals__.get("__name__", ""))
    return str(getattr(thing, "__module__", None) or getattr(thing, "__name__", ""))


def _content(module: types.ModuleType | None) -> str:
    """A hash of a module's file; "" if it has none that can be read."""
    try:
        return digest(Path(module.__file__).read_bytes())  # type: ignore[union-attr, arg-type]
    except (OSError, TypeError, AttributeError):
        return ""


def _function(function: types.FunctionType, seen: Seen) -> Iterator[object]:
    code = function.__code__
    closure = {
        name: cell.cell_contents for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    }
    yield function.__qualname__
    yield from _parts((function.__defaults__, function.__kwdefaults__, vars(function)), seen)
    if _known(function):  # the code is known, but not what it was made with: `iterative(3)` is not `iterative(5)`
        module = _module(function)
        yield module
        if module.split(".")[0] not in ("torch", "numpy", "pruninglab", *sys.stdlib_module_names):
            yield _content(sys.modules.get(module))  # of a package that may be the user's own
        yield from _parts(closure, seen)
        return
    yield from _parts(code, seen)
    yield from _used([*_names(code)], function.__globals__ | closure | _imported(code, function.__globals__), seen)


def _imported(code: types.CodeType, scope: Mapping[str, Any]) -> dict[str, Any]:
    """The modules that code imports when it runs, by their names."""
    found, level = {}, 0
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_CONST" and isinstance(step.argval, int):
            level = step.argval  # the last number before the import says how many packages up it begins
        elif step.opname == "IMPORT_NAME":
            package = scope.get("__package__") if level else None
            with suppress(Exception):  # then the code fails too
                found[step.argval] = importlib.import_module("." * level + step.argval, package)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _imported(constant, scope)
    return found


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
