"""Text that every Python installation carries, cut into windows for a language model.

Whatever the source, it is cut into paragraphs, of which each counts once: documentation repeats itself, and what stands
in the training text must not stand in the test text too. A paragraph's own hash says which split it belongs to, so
another version of Python moves no paragraph to another split.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pruninglab.tasks.data import Splits

LENGTH = 128  # tokens of a window
HELD_OUT = ("validation", "test")  # a tenth of all paragraphs each; the rest is for training


def documentation() -> str:
    """The topics of Python's own documentation (`help("LOOPING")`), about 450 kB."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def split(text: str) -> dict[str, str]:
    """Split ("train", "validation", "test") → its paragraphs, each once, in the order of the text.

    Raises:
        ValueError: one of them would be empty.
    """
    parts: dict[str, list[str]] = {name: [] for name in ("train", *HELD_OUT)}
    for paragraph in dict.fromkeys(part.strip("\r\n") for part in re.split(r"\n\s*\n", text)):
        if paragraph.strip():
            tenth = hashlib.sha256(paragraph.strip().encode()).digest()[0] * 10 // 256
            parts[HELD_OUT[tenth] if tenth < len(HELD_OUT) else "train"].append(paragraph)
    for name, paragraphs in parts.items():
        if not paragraphs:
            raise ValueError(f"the text of {len(text)} characters is too short: no paragraph of it is for {name!r}")
    return {name: "\n\n".join(paragraphs) for name, paragraphs in parts.items()}


def windows(
    tokens: Sequence[int], length: int = LENGTH, stride: int | None = None, what: str = "text"
) -> tuple[Tensor, Tensor]:
    """Pieces of a text and, for each of their tokens, the next one: x and y, (windows, length) int64 each.

    Args:
        tokens: of the whole text.
        length: of a window.
        stride: from the start of a window to that of the next; `length` if not given, so that none overlap.
        what: a name for the text, for the error.

    Raises:
        ValueError: a length below 1, or a text shorter than one window.
    """
    if length < 1:
        raise ValueError(f"a window has at least 1 token, not {length}")
    if len(tokens) <= length:
        raise ValueError(f"the {what} has {len(tokens)} tokens: too few for one window of {length} and the next token")
    pieces = torch.tensor(tokens, dtype=torch.int64).unfold(0, length + 1, stride or length)
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def check_tokens(tokens: Tensor, vocabulary: int, what: str = "data") -> None:
    """Raises a ValueError if there are tokens that a vocabulary of so many does not have."""
    if tokens.numel() and not bool(((tokens >= 0) & (tokens < vocabulary)).all()):
        low, high = int(tokens.min()), int(tokens.max())
        raise ValueError(
            f"token ids run from 0 to {vocabulary - 1} in this model, and from {low} to {high} in the {what}: "
            "does the tokenizer belong to the model?"
        )


def splits(texts: Mapping[str, str], encode: Callable[[str], Sequence[int]], length: int = LENGTH) -> Splits:
    """Windows of each split; those for training overlap by half, so that a step sees other beginnings."""
    return {
        name: windows(encode(text), length, max(1, length // 2) if name == "train" else None, f"{name} text")
        for name, text in texts.items()
    }


def as_bytes(text: str) -> list[int]:
    """The simplest tokens: UTF-8 bytes, 0 to 255."""
    return list(text.encode())


def from_bytes(tokens: Sequence[int] | Tensor) -> str:
    """The text again; what is not UTF-8 becomes �."""
    return bytes(int(token) % 256 for token in tokens).decode(errors="replace")
