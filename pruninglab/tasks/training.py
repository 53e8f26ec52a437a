"""One training loop for everything: SGD with momentum (or Adam), weight decay and a cosine learning rate.

What happens at step k depends on the seed and on k alone, not on what ran before, so a run that was interrupted goes
on from its checkpoint exactly as if it had not been. The loop knows nothing of pruning: masks come in as something that
holds an optimizer's weights in place, and anything else comes in through `on_step`.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pruninglab.files import load_tensors, save_tensors
from pruninglab.naming import unknown, whole
from pruninglab.progress import progress
from pruninglab.tasks.precision import HALF, halves, single_precision
from pruninglab.tasks.stacked import Stack, generators_kept, stackable

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
OnStep = Callable[[int, torch.optim.Optimizer], None]
OPTIMIZERS = ("sgd", "adam", "adamw")
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
    optimizer: str = "sgd"  # "adam", with weight decay as an ℓ2 penalty; or "adamw", which decays matrices only
    warmup: float = 0.0  # the fraction of steps in which the learning rate rises from 0
    clip: float | None = None  # what the norm of all gradients is cut down to

    def __post_init__(self) -> None:
        allowed = {
            "steps": (whole("steps", self.steps) >= 0, "0 or more"),
            "batch": (whole("batch", self.batch) >= 1, "1 or more"),
            "lr": (0 <= self.lr < math.inf, "a finite number of 0 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a finite number of 0 or more"),
            "warmup": (0 <= self.warmup <= 1, "a fraction of the steps, in [0, 1]"),
            "clip": (self.clip is None or self.clip > 0, "more than 0, or None"),
        }
        for name, (fits, told) in allowed.items():
            if not fits:
                raise ValueError(f"Training: {name} must be {told}, not {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


def rows(outputs: Any) -> Tensor:
    """The logits of whatever a model returns, (samples, classes); positions of a text are samples too.

    In single precision at least, since small differences of losses are lost in half of it.
    """
    logits = getattr(outputs, "logits", outputs).flatten(0, -2)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The default objective: the mean over samples (and positions)."""
    return F.cross_entropy(rows(model(x)), y.flatten())


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
    """Train a model in place. Weights of half precision are trained in single, and rounded at the end.

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
    stop = how.steps if stop is None else stop
    if not len(data[0]):
        raise ValueError("no data to train on")
    if not 0 <= start <= stop <= how.steps:
        raise ValueError(f"training runs over steps 0 to {how.steps}; start={start}, stop={stop} is not within")
    plan = Plan(data, how, objective, start, stop, label)
    job = Job(model, seed, masks, on_step)
    meet = getattr(beside, "meet", None)
    # What has a checkpoint is a network for the cache, which must not depend on what trains beside it.
    if meet is not None and checkpoint is None:
        return meet(job, plan)
    (losses,) = train_all([job], plan, checkpoint)
    if isinstance(losses, Exception):
        raise losses
    return losses


beside = threading.local()  # `together` puts here, for the thread of each of its jobs, how to meet the others


@dataclass(frozen=True, eq=False)
class Job:
    """A network to be trained, and what belongs to it alone."""

    model: nn.Module
    seed: int
    masks: Enforceable | None
    on_step: OnStep | None
    context: Context = field(default_factory=copy_context)  # `quietly`, say, holds in `on_step` whoever runs it


@dataclass(frozen=True, eq=False)
class Plan:
    """What networks that train side by side have in common."""

    data: tuple[Tensor, Tensor]
    how: Training
    objective: Objective
    start: int
    stop: int
    label: str

    def fits(self, other: "Plan") -> bool:
        """Whether two plans are one."""
        same = self.data[0] is other.data[0] and self.data[1] is other.data[1] and self.objective is other.objective
        return same and (self.how, self.start, self.stop) == (other.how, other.start, other.stop)


def train_all(jobs: Sequence[Job], plan: Plan, checkpoint: Path | None = None) -> list[list[float] | Exception]:
    """Train the networks of several jobs, as one stack where they are small and alike, and one by one elsewhere.

    Returns the losses of each job; or, where its objective or `on_step` failed, the error: the others go on.
    """
    models = [job.model for job in jobs]
    if len(jobs) == 1:
        (model,) = models
        try:
            with single_precision(model):
                optimizer = _optimizer(model, plan.how)
                losses_of = partial(plan.objective, model)
                return _steps(jobs, plan, model, optimizer, [optimizer], losses_of, checkpoint)
        except Exception as error:
            return [error]
    if (
        plan.objective is not cross_entropy
        or plan.how.augment
        or plan.how.clip is not None
        or any(map(halves, models))
        or not stackable(models, plan.data[0])
    ):
        return [train_all([job], plan)[0] for job in jobs]
    stack = Stack(models)
    optimizer = _optimizer(stack, plan.how, stacked=True)
    with stack.shared_with(models):
        followers = [Follower(model, stack, optimizer, s) for s, model in enumerate(models)]
        return _steps(jobs, plan, stack, optimizer, followers, stack.losses, None)


class Follower(torch.optim.Optimizer):
    """One network's share of a stack's optimizer, for masks and `on_step`: its parameters, gradients, momentum, hooks.

    It never steps by itself. `stepped` calls what was registered to follow a step.
    """

    def __init__(self, model: nn.Module, stack: Stack, leader: torch.optim.Optimizer, s: int) -> None:
        super().__init__(list(model.parameters()), {})
        self._shares = [(name, model.get_parameter(name), stacked) for name, stacked in stack.net.named_parameters()]
        self._stack, self._leader, self._s = stack, leader, s
        self._hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def stepped(self) -> None:
        for hook in self._hooks.values():
            hook(self, (), {})

    def follow(self) -> None:
        """Make gradients and momentum visible, as views of the stack's, where they are not yet."""
        for name, parameter, stacked in self._shares:
            if parameter.grad is None and stacked.grad is not None:
                parameter.grad = self._stack.part(name, stacked.grad, self._s)
            if parameter not in self.state:
                for key, value in self._leader.state[stacked].items():
                    whole = isinstance(value, Tensor) and value.shape == stacked.shape
                    self.state[parameter][key] = self._stack.part(name, value, self._s) if whole else value


def _steps(
    jobs: Sequence[Job],
    plan: Plan,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    followers: Sequence[torch.optim.Optimizer],
    losses_of: Callable[[Tensor, Tensor], Tensor],
    checkpoint: Path | None,
) -> list[list[float] | Exception]:
    how, seeds = plan.how, [job.seed for job in jobs]
    device = next(net.parameters()).device
    start = plan.start
    if checkpoint is not None and checkpoint.exists():
        start = _resume(checkpoint, net, optimizer, start)
    losses: list[Tensor] = []
    failed: dict[int, Exception] = {}  # networks that train on for nothing, since the others must not notice
    # Gradients that stay where they are, so that views of them stay valid. If nobody looks, new ones are quicker.
    watched = isinstance(followers[0], Follower) and any(job.on_step is not None for job in jobs)
    saved = time.monotonic()
    net.train()
    for job in jobs:
        job.model.train()
    try:
        with ExitStack() as held, progress(total=plan.stop, initial=start, desc=plan.label, unit="step") as bar:
            held.enter_context(generators_kept(device))
            for job, follower in zip(jobs, followers, strict=True):
                if job.masks is not None:
                    held.enter_context(job.masks.enforced(follower))
            for step in range(start, plan.stop):
                inputs, targets = batch_at(step, plan.data, how, *seeds)
                for group in optimizer.param_groups:
                    group["lr"] = rate(step, how)
                _seed(device, seeds[0] * 1_000_003 + step)  # for dropout, say; none of it is in a stack
                inputs = inputs.float() if inputs.dtype in HALF else inputs
                each = losses_of(inputs.to(device), targets.to(device))
                optimizer.zero_grad(set_to_none=not watched)
                each.backward(torch.full_like(each, len(jobs) / each.numel()))  # of each network's mean
                if how.clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), how.clip)
                optimizer.step()
                losses.append(each.detach())
                for s, (job, follower) in enumerate(zip(jobs, followers, strict=True)):
                    if isinstance(follower, Follower):
                        if job.on_step is not None:
                            follower.follow()
                        follower.stepped()
                    if job.on_step is not None and s not in failed:
                        try:
                            job.context.run(job.on_step, step + 1, follower)
                        except Exception as error:
                            if len(jobs) == 1:
                                raise
                            failed[s] = error
                bar.update()
                if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                    _save(checkpoint, net, optimizer, step + 1)
                    saved = time.monotonic()
    finally:
        for job in jobs:
            job.model.eval()
    if not losses:
        return [failed.get(s, []) for s in range(len(jobs))]
    means = torch.stack(losses).view(len(losses), len(jobs), -1).mean(2).T.tolist()
    return [failed.get(s, mine) for s, mine in enumerate(means)]


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that layers draw from on this device (`torch.manual_seed` takes longer than a small step)."""
    torch.default_generator.manual_seed(seed % 2**63)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed % 2**63)


def _optimizer(model: nn.Module, how: Training, *, stacked: bool = False) -> torch.optim.Optimizer:
    """An optimizer; fused is quicker for the large tensors of a stack, and rounds a little differently."""
    way: dict[str, Any] = {"fused": True} if stacked else {"foreach": True}
    way |= {"lr": how.lr, "weight_decay": how.weight_decay}
    if how.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=how.momentum, **way)
    if how.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **way)
    matrices = [p for p in model.parameters() if p.ndim - stacked > 1]
    others = [p for p in model.parameters() if p.ndim - stacked <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(how.momentum, 0.95), **way)


def rate(step: int, how: Training) -> float:
    """The learning rate of step 0, 1, …: it rises to `lr` during the warm-up, on a cosine that ends at 0."""
    rise = min(1.0, (step + 1) / (how.warmup * how.steps)) if how.warmup else 1.0
    return rise * how.lr * 0.5 * (1 + math.cos(math.pi * step / how.steps))


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


def batch_at(step: int, data: tuple[Tensor, Tensor], how: Training, *seeds: int) -> tuple[Tensor, Tensor]:
    """The samples that step `step` = 0, 1, … sees with each of the seeds, behind one another."""
    x, y = data
    index = torch.cat([batch_index(step, len(x), how.batch, seed) for seed in seeds])
    inputs, targets = x.index_select(0, index), y.index_select(0, index)
    if how.augment:
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + step) for seed in seeds]
        inputs = torch.cat([augmented(*pair) for pair in zip(inputs.chunk(len(seeds)), generators, strict=True)])
    return inputs, targets


def batch_index(step: int, n: int, batch: int, seed: int) -> Tensor:
    """Which samples step `step` sees: each epoch is a new permutation, cut into whole batches."""
    batch = min(batch, n)
    epoch, position = divmod(step, n // batch)
    return _order(n, seed, epoch)[position * batch : (position + 1) * batch]


@lru_cache(maxsize=32)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


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
