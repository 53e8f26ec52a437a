"""Files that are written whole or not at all, and the folder they are cached in.

Only tensors and plain text are ever read back (safetensors, JSON): nothing is unpickled.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent
TELLING = {"notebook", "book.py", "cli.py", "doctor.py", "listings.py"}  # show results, and change none


def data_dir() -> Path:
    """Where data and caches live: `$PRUNINGLAB_DATA`, else `data/` of the checkout, else `~/.cache/pruninglab`."""
    if chosen := os.environ.get("PRUNINGLAB_DATA"):
        return Path(chosen)
    checkout = PACKAGE.parent
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path.home() / ".cache" / "pruninglab"


def cache_dir() -> Path:
    """The folder for what can be made again; delete it at any time."""
    return data_dir() / "cache"


def writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` only if the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    whole: dict[str, Tensor] = {}
    stored: set[int] = set()  # the format has no shared memory, so tied weights are written once for each name
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        whole[name] = flat.clone() if flat.untyped_storage().data_ptr() in stored else flat
        stored.add(whole[name].untyped_storage().data_ptr())
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata=dict(metadata) if metadata else None)  # {} cannot be read back


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read `(tensors, metadata)` of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no file {os.fspath(path)!r}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a whole safetensors file: {error}") from error


def digest(*parts: object) -> str:
    """A short hash of tensors, bytes and anything whose `repr` says all about it."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(part if isinstance(part, bytes) else repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:20]


@cache
def code_version(folder: str = "") -> str:
    """A hash of the library's own source (of one of its folders): cached results die with the code that made them."""
    sources = sorted((PACKAGE / folder).rglob("*.py"))
    if not folder:
        sources = [path for path in sources if not TELLING & set(path.relative_to(PACKAGE).parts)]
    return digest(*(path.read_bytes() for path in sources))
