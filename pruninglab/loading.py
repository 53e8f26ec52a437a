"""Functions from a file that somebody wrote, for the command line: `my_file.py:my_score`.

The file is read anew each time and is no module that could be imported again. So its functions are sent to other
processes whole, by value, and reach workers that have never seen the file.
"""

import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pruninglab.naming import unknown


def load_function(place: str) -> Callable[..., Any]:
    """The function at a place such as "folder/my_file.py:my_score".

    The file's folder is added to the places where Python looks for modules, last, so that it may import its neighbours.

    Raises:
        ValueError: there is no such file or function, or the file's own code fails; one line that says what and where.
    """
    file, _, name = place.rpartition(":") if ":" in place else (place, "", "")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"there is no Python file {file!r}")
    module = _run(path)
    functions = [found for found, thing in vars(module).items() if found[0] != "_" and _made_in(module, thing)]
    if not functions and not callable(getattr(module, name, None)):
        raise ValueError(f"{file} defines no function")
    if not name:
        raise ValueError(f"name the function as well: {', '.join(f'{file}:{found}' for found in functions)}")
    if not hasattr(module, name):
        raise unknown(f"function of {file}:", name, functions)
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"{name} in {file} is no function but {function!r}; functions: {', '.join(functions)}")
    return function


def _made_in(module: ModuleType, thing: Any) -> bool:
    """Whether something is a function of the module's own, or acts like one."""
    imported = inspect.isroutine(thing) and getattr(thing, "__module__", None) != module.__name__
    return callable(thing) and not inspect.isclass(thing) and not imported


def _run(path: Path) -> ModuleType:
    # A name that cannot be imported: pickle sends what it cannot import by value, and `fingerprint` takes nothing that
    # is called like a part of Python (random.py) for known.
    module = ModuleType(f"<{path.name}>")
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[module.__name__] = module  # data classes look for themselves there while they are made
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise ValueError(_told(path, error)) from error
    finally:
        del sys.modules[module.__name__]
    return module


def _told(path: Path, error: BaseException) -> str:
    """What went wrong in a file, and in which of its lines."""
    last = traceback.format_exception_only(error)[-1].strip()
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
    return f"{path}{f', line {line}' if line else ''}: {last}"
