"""What is installed, what this machine is, and what to do about each fault: `python -m pruninglab doctor`.

Each check is a function that says what it found, or raises `Fault` with what to do about it. None needs a network.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from pruninglab.files import data_dir, writable

ROOM = 1.0  # GB that caches of the whole book may need


class Fault(Exception):
    """What is wrong, and what to do about it."""


def diagnose() -> Iterator[tuple[str, str, str]]:
    """(what was looked at, what was found, what to do about it), the last empty where all is well."""
    for name, check in CHECKS.items():
        try:
            yield name, check(), ""
        except Fault as fault:
            found, advice = fault.args
            yield name, found, advice


def python() -> str:
    """Its version, and whether it runs in an environment of its own."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036  an older one may have been forced to install this
        raise Fault(found, "Pruning Lab needs 3.11 or newer: install one, delete .venv, and run `make lab` again.")
    return found


def packages() -> str:
    """Versions of what the project says it needs."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("pruninglab") or ()]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    found, wrong = [], []
    for need in needed:
        try:
            installed = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        found.append(f"{need.name} {installed}")
        if not need.specifier.contains(installed, prereleases=True):
            wrong.append(f"{need.name} is {installed}, and {need.specifier} is needed")
    if wrong:
        raise Fault("; ".join(wrong), "Set up again: delete .venv and run `make lab`, or `python -m pip install -e .`.")
    return ", ".join(found)


def torchvision() -> str:
    """Whether it belongs to the installed torch. Two tasks need it; everything else works without."""
    import torch

    from pruninglab.tasks.data import TOGETHER, import_torchvision

    try:
        found = import_torchvision()
    except RuntimeError as error:
        advice = f"torch and torchvision do not belong together. Install both at once: {TOGETHER}"
        raise Fault(str(error).splitlines()[0], advice) from error
    return f"{found.__version__}, with torch {torch.__version__}"


def processor() -> str:
    """Cores, and how many threads torch uses."""
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > cores:
        advice = f"More threads than cores make everything slower: set OMP_NUM_THREADS={cores}."
        raise Fault(f"{cores} cores, {threads} threads", advice)
    return f"{cores} cores, {threads} threads"


def accelerator() -> str:
    """The GPU, if there is one that torch can use. None is needed."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (device = 'cuda')"
    if torch.backends.mps.is_available():
        return "Apple GPU (device = 'mps')"
    return "none; the book does not need one"


def folder() -> str:
    """Where data and caches go, and how much room there is."""
    path = data_dir()
    if not writable(path / "cache"):
        advice = "Networks would be trained again each time. Set PRUNINGLAB_DATA to a folder that you may write to."
        raise Fault(f"{path} cannot be written to", advice)
    free = shutil.disk_usage(path).free / 1e9
    if free < ROOM:
        advice = f"Make room for {ROOM:g} GB, delete its folder cache, or set PRUNINGLAB_DATA to another place."
        raise Fault(f"{path}, {free:.1f} GB free", advice)
    return f"{path}, {free:.0f} GB free"


def language_model() -> str:
    """Whether the language model that ships is whole."""
    from pruninglab.files import load_tensors
    from pruninglab.tasks.language import SHIPPED

    try:
        tensors, _ = load_tensors(SHIPPED)
    except (OSError, ValueError) as error:
        advice = "Get it from the repository again, or train it: python -m pruninglab tiny-llama (some minutes)."
        raise Fault(str(error), advice) from error
    return f"{Path(SHIPPED).name}, {sum(t.numel() for t in tensors.values()) / 1e6:.2f} million weights"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": python,
    "packages": packages,
    "torchvision": torchvision,
    "processor": processor,
    "GPU": accelerator,
    "data folder": folder,
    "tiny-llama": language_model,
}
