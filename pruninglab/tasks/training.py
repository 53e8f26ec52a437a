"""One training loop for everything: SGD with momentum (or Adam), weight decay and a cosine learning rate.

What happens at step k depends on the seed and on k alone, not on what ran before, so a run that was interrupted goes
on from its checkpoint exactly as if it had not been. The loop knows nothing of pruning: masks come in as something that
holds an optimizer's weights in place, and anything else comes in through `on_step`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.files import load_tensors, save_tensors
from pruninglab.naming import unknown
from pruninglab.progress import progress

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
OnStep = Callable[[int, torch.optim.Optimizer], None]
SAVE_EVERY = 2.0  # seconds between checkpoints, always of whole steps: what an interruption can cost at most


class Enforceable(Protocol):
    """Something, like `Masks`, that keeps an optimizer's weights where they have to be."""

    def enforced(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Training:
    """How a network is trained, which decides more than any criterion how far it can be pruned (chapter 2)."""

    steps: int = 800
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    augment: bool = False  # random flips and shifts, for photographs
    optimizer: str = "sgd"  # or "adam", with weight decay as an ℓ2 penalty


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The default objective."""
    return F.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    how: Training,
    *,
    seed: int = 0,
    masks: Enforceable | None = None,
    objective: Objective = cross_entropy,
    on_step: OnStep | None = None,
    start: int = 0,
    stop: int | None = None,
    checkpoint: Path | None = None,
    label: str = "training",
) -> list[float]:
    """Train a model in place.

    Args:
        model: any module; it is left in evaluation mode.
        data: x (n, …) and y (n, …).
        how: the recipe; its learning rate runs from `lr` to 0 over `steps`, whatever `start` and `stop` are.
        seed: decides the order of the data (and of augmentation).
        masks: weights to hold at zero.
        objective: `objective(model, x, y)`, a scalar.
        on_step: called as `on_step(k, optimizer)` after step k = 1, 2, …
        start: the first step to do (0 = from the beginning).
        stop: the step before which to stop; all `steps` if not given.
        checkpoint: where to save every two seconds, and from where to go on.
        label: the text of the progress bar, which appears if training takes more than two seconds.

    Returns:
        The loss of each step that this call did.

    Raises:
        ValueError: no data, or not 0 ≤ start ≤ stop ≤ steps.
    """
    x, y = data
    stop = how.steps if stop is None else stop
    if not len(x):
        raise ValueError("no data to train on")
    if not 0 <= start <= stop <= how.steps:
        raise ValueError(f"training runs over steps 0 to {how.steps}; start={start}, stop={stop} is not within")
    device = next(model.parameters()).device
    optimizer = _optimizer(model, how)
    if checkpoint is not None and checkpoint.exists():
        start = _resume(checkpoint, model, optimizer, start)
    losses: list[float] = []
    model.train()
    saved = time.monotonic()
    held = masks.enforced(optimizer) if masks is not None else nullcontext()
    try:
        with held, progress(total=stop, initial=start, desc=label, unit="step") as bar:
            for step in range(start, stop):
                index = batch_index(step, len(x), how.batch, seed)
                inputs, targets = x[index], y[index]
                if how.augment:
                    inputs = augmented(inputs, torch.Generator().manual_seed(seed * 1_000_003 + step))
                for group in optimizer.param_groups:
                    group["lr"] = how.lr * 0.5 * (1 + math.cos(math.pi * step / how.steps))
                loss = objective(model, inputs.to(device), targets.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                if on_step is not None:
                    on_step(step + 1, optimizer)
                bar.update()
                if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                    _save(checkpoint, model, optimizer, step + 1)
                    saved = time.monotonic()
    finally:
        model.eval()
    return losses


def _optimizer(model: nn.Module, how: Training) -> torch.optim.Optimizer:
    if how.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay, foreach=True
        )
    if how.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=how.lr, weight_decay=how.weight_decay, foreach=True)
    raise unknown("optimizer", how.optimizer, ("sgd", "adam"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; each of its parts goes back to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def batch_index(step: int, n: int, batch: int, seed: int) -> Tensor:
    """Which samples step `step` sees: each epoch is a new permutation, cut into whole batches."""
    batch = min(batch, n)
    epoch, position = divmod(step, n // batch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[position * batch : (position + 1) * batch]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture mirrored with probability ½ and shifted by up to an eighth of its width (zeros move in)."""
    n, _, height, width = images.shape
    reach = width // 8
    mirrored = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)
    padded = F.pad(mirrored, (reach, reach, reach, reach))
    top, left = torch.randint(2 * reach + 1, (2, n), generator=generator)
    rows = (top.view(-1, 1) + torch.arange(height)).view(n, 1, height, 1)
    columns = (left.view(-1, 1) + torch.arange(width)).view(n, 1, 1, width)
    sample = torch.arange(n).view(n, 1, 1, 1)
    channel = torch.arange(images.shape[1]).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
    save_tensors(path, tensors, {"done": str(done)})


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, start: int) -> int:
    """Load a checkpoint into model and optimizer and return the step to go on with; a broken one is thrown away."""
    try:
        tensors, metadata = load_tensors(path)
        state = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
        model.load_state_dict(state)
        done = int(metadata["done"])
    except (ValueError, KeyError, RuntimeError, FileNotFoundError):  # another process may have finished and removed it
        path.unlink(missing_ok=True)
        return start
    parameters = dict(model.named_parameters())
    for place, value in tensors.items():
        key, name = place.split("/", 1)
        if key != "model":
            parameter = parameters[name]
            optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return done
