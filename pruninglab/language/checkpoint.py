"""A model whose weights stay in their files until they are asked for by name.

The model is built from its configuration alone. Its parameters have shapes and no memory, and each of them is filled
from a safetensors file, or emptied again, when somebody says so.
"""

import copy
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.tasks.linears import as_linear

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
RENAMED = (  # names in published files, and what they are called in a model (that is unpacked as in `linears`)
    (r"^embed_out\.", r"lm_head."),
    (r"\.block_sparse_moe\.", r".mlp."),
    (r"\.experts\.(\d+)\.(?:w1|gate_proj)\.", r".experts.gate_proj.\1."),
    (r"\.experts\.(\d+)\.(?:w3|up_proj)\.", r".experts.up_proj.\1."),
    (r"\.experts\.(\d+)\.(?:w2|down_proj)\.", r".experts.down_proj.\1."),
)


class Checkpoint:
    """The tensors of a folder, and the model that they belong to, without code from elsewhere.

    Args:
        folder: has `config.json`, and `*.safetensors` in one file or in many.
        device: where tensors go when they are loaded.

    Attributes:
        model: in evaluation mode, unpacked as in `tasks.linears`; its parameters are on the meta device at first.
        files: name of a tensor → the file it is in.
        places: name of a tensor → its name in the model. Tensors that the model does not use are left out.
        also: name in the model → other names, in the model, of the same tensor, which the files hold only once.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is quantised, or lacks a tensor of the model (or holds it in a way that is not known here).
    """

    def __init__(self, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
        self.device, self.files = device, _files(Path(folder))
        self.model = _skeleton(folder, self.files, device)
        state = self.model.state_dict(keep_vars=True)
        found = {name: _place(name, state, self.model.base_model_prefix) for name in self.files}
        self.places = {name: place for name, place in found.items() if place is not None}
        filled = {id(state[place]): place for place in self.places.values()}
        self.also: dict[str, list[str]] = {}
        for place in sorted(state.keys() - set(self.places.values())):
            if id(state[place]) not in filled:
                raise ValueError(
                    f"nothing in the checkpoint is known to be {place}; it has {', '.join(sorted(self.files)[:3])}, …"
                )
            self.also.setdefault(filled[id(state[place])], []).append(place)

    def load(self, names: Iterable[str], path: Path | None = None) -> None:
        """Fill tensors of the model, in its dtype, from the checkpoint or from another file that has these names.

        Raises:
            ValueError: a tensor of another shape.
        """
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(path or self.files[name], []).append(name)
        for source, inside in by_file.items():
            with safe_open(source, framework="pt") as file:  # closed soon: pages of an open file count as memory
                for name in inside:
                    self._fill(name, file.get_tensor(name))

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of the model as they are now, in the layout of the files."""
        return {name: self._turned(name, self._parameter(self.places[name]).detach()) for name in names}

    def _fill(self, name: str, tensor: Tensor) -> None:
        place = self.places[name]
        before = self._parameter(place)
        tensor = self._turned(name, tensor)
        if tensor.shape != before.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but {tuple(before.shape)} in the configuration")
        fresh = torch.empty_like(before, device=self.device).copy_(tensor)
        if isinstance(before, nn.Parameter):
            fresh = nn.Parameter(fresh, before.requires_grad)
        for each in (place, *self.also.get(place, ())):
            owner, _, leaf = each.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, fresh)

    def _parameter(self, place: str) -> Tensor:
        owner, _, leaf = place.rpartition(".")
        return getattr(self.model.get_submodule(owner), leaf)

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        """Between the layout of the files and that of the model, either way."""
        owner, _, leaf = self.places[name].rpartition(".")
        conv1d = leaf == "weight" and getattr(self.model.get_submodule(owner), "was_conv1d", False)
        return tensor.T if conv1d else tensor


def _files(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    if not (folder / "config.json").is_file() or not ((folder / INDEX).is_file() or (folder / WHOLE).is_file()):
        raise FileNotFoundError(f"{os.fspath(folder)!r} needs config.json, and {WHOLE} or {INDEX}")
    if (folder / INDEX).is_file():
        where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in where.items()}
    with safe_open(folder / WHOLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), folder / WHOLE)


def _skeleton(folder: str | os.PathLike[str], files: Mapping[str, Path], device: str | torch.device) -> Any:
    """The model without weights, but with those buffers that follow from its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(os.fspath(folder), trust_remote_code=False, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{os.fspath(folder)!r} is quantised: prune first and quantise then")
    with _without_memory():
        dtype = config.dtype or _dtype(files)
        model, exact = (
            AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=each, trust_remote_code=False)
            for each in (dtype, torch.float32)  # buffers are computed in full precision and rounded afterwards
        )
    for buffer, precise in zip(model.buffers(), exact.buffers(), strict=True):
        buffer.copy_(precise)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return as_linear(model).eval()


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters of modules that this thread makes are on the meta device. Not so buffers: not all are in the files."""
    register, here = nn.Module.register_parameter, threading.get_ident()

    def without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta and threading.get_ident() == here:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _dtype(files: Mapping[str, Path]) -> torch.dtype:
    """What the first tensor of floating-point numbers is made of."""
    from safetensors import safe_open

    for name, path in files.items():
        with safe_open(path, framework="pt") as file:
            if (dtype := file.get_tensor(name).dtype).is_floating_point:
                return dtype
    return torch.get_default_dtype()


def _place(name: str, state: Mapping[str, Tensor], prefix: str) -> str | None:
    """The name in the model of a tensor in a file; None if it has none."""
    for known in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        unpacked = known
        for pattern, here in RENAMED:
            unpacked = re.sub(pattern, here, unpacked)
        for place in (known, unpacked):
            if place in state:
                return place
    return None
