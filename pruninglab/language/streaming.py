"""Prune a checkpoint that is larger than memory: the embeddings and one block at a time are all that is held.

Each block gets its weights just before it is visited, and what is left of it is written at once, as a file of the new
checkpoint. So an interrupted run goes on where it was.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pruninglab.batches import tensors_of
from pruninglab.files import atomic, digest, save_tensors
from pruninglab.language.blocks import find_blocks, walk
from pruninglab.language.checkpoint import INDEX, Checkpoint
from pruninglab.language.one_shot import Shares, Step, reject_nan, shares_of
from pruninglab.layers import prunable
from pruninglab.statistics import Data

OUTSIDE = "outside"  # of all blocks: the embeddings, the last norm, the output layer
COPIED = (".json", ".txt", ".model", ".jinja")  # the configuration, the tokenizer, …


@torch.no_grad()
def stream(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    data: Data,
    step: Step,
    sparsity: Shares,
    *,
    blocks: str | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Prune a model of transformers from one folder into another, which `from_pretrained` reads.

    The weights are those that `one_shot` leaves. Tensors keep their names and their layout.

    Args:
        source: a folder with `config.json`, and `*.safetensors` in one file or in many.
        target: another folder. What an interrupted run has left there is not done again.
        data: token ids, (sequences, tokens), or batches of what the model is called with.
        step: what is done to a block, as in `one_shot`.
        sparsity: the fraction to remove from each layer of the blocks: one for all, or layer → fraction.
        blocks: as in `blocks.find_blocks`.
        device: where the work is done.

    Returns:
        Layer → the fraction of its weights that are zero.

    Raises:
        FileNotFoundError: the source is no such folder.
        ValueError: a checkpoint as in `Checkpoint`, weights that blocks share, a target of another run; and as
            `one_shot`.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise ValueError(f"source and target are one folder, {os.fspath(source)!r}: the source stays as it is")
    checkpoint = Checkpoint(source, device)
    found = find_blocks(checkpoint.model, blocks)
    shares = shares_of(sparsity, [f"{name}.{own}" for name, module in found.items() for own in prunable(module)])
    parts = _parts(checkpoint, list(found))
    files = {part: target / f"model-{i:05}-of-{len(parts):05}.safetensors" for i, part in enumerate(parts, 1)}
    data = list(data) if isinstance(data, Iterator) else data  # they are read more than once
    versions = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in {*checkpoint.files.values()}
    )
    run = {"format": "pt", "run": digest(step.__name__, sorted(shares.items()), versions, *tensors_of(data))}
    _reject_others(target, files, run)

    def load(part: str) -> None:
        checkpoint.load(parts[part], files[part] if files[part].exists() else None)

    def save(part: str) -> None:
        if not files[part].exists():
            save_tensors(files[part], checkpoint.tensors(parts[part]), run)

    @contextmanager
    def around(name: str, module: nn.Module) -> Iterator[None]:
        try:
            load(name)
            yield
        finally:
            module.to("meta")

    load(OUTSIDE)
    save(OUTSIDE)
    size, zeros = _bytes(checkpoint.tensors(parts[OUTSIDE])), dict[str, float]()
    with closing(walk(checkpoint.model, data, blocks, around=around)) as visits:
        for block in visits:
            layers = block.layers()
            if not files[block.name].exists():
                reject_nan(block)
                step(block, {own: shares[block.full(own)] for own in layers})
            save(block.name)
            size += _bytes(checkpoint.tensors(parts[block.name]))
            zeros |= {block.full(own): float((layer.weight == 0).double().mean()) for own, layer in layers.items()}

    for path in source.iterdir():
        if path.suffix in COPIED and path.name != INDEX:
            with atomic(target / path.name) as temporary:
                shutil.copyfile(path, temporary)
    where = {name: files[part].name for part, names in parts.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": where}
    with atomic(target / INDEX) as temporary:  # last: without it nobody takes the folder for a whole model
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return zeros


def _parts(checkpoint: Checkpoint, blocks: list[str]) -> dict[str, list[str]]:
    """The names of the tensors of each block, and of those outside."""

    def part_of(place: str) -> str:
        return next((block for block in blocks if place.startswith(f"{block}.")), OUTSIDE)

    parts: dict[str, list[str]] = {part: [] for part in (OUTSIDE, *blocks)}
    for name, place in checkpoint.places.items():
        parts[part_of(place)].append(name)
        for other in checkpoint.also.get(place, ()):
            if part_of(other) != part_of(place):
                raise ValueError(f"{place} and {other} are one tensor: prune the whole model at once, with one_shot")
    return parts


def _reject_others(target: Path, files: dict[str, Path], run: dict[str, str]) -> None:
    """Raises a ValueError if the target holds what this run has not made."""
    from safetensors import SafetensorError, safe_open

    for path in target.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                if path in files.values() and (file.metadata() or {}).get("run") == run["run"]:
                    continue
        except SafetensorError:
            pass
        raise ValueError(
            f"target={os.fspath(target)!r} holds {path.name}, which another run has made: name another folder, or "
            "delete it"
        )


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
