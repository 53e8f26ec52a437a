"""Data, a network and a way to train it, under one name. Tasks know nothing of pruning.

t = task("digits-mlp")
model = t.trained(seed=0)     # from the cache, or trained in seconds
t.accuracy(model)             # on the test split
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.files import cache_dir, code_version, digest, load_tensors, save_tensors
from pruninglab.naming import lookup
from pruninglab.tasks import data, models
from pruninglab.tasks.data import Splits
from pruninglab.tasks.training import Enforceable, Objective, OnStep, Training, cross_entropy, evaluating, train


@dataclass(frozen=True)
class Task:
    """Data, network and training recipe.

    Attributes:
        name: what `task` knows it by.
        load: makes the data; called once, when they are first needed.
        build: makes an untrained network.
        training: the recipe of the dense network.
    """

    name: str
    load: Callable[[], Splits]
    build: Callable[[], nn.Module]
    training: Training

    @cached_property
    def data(self) -> Splits:
        """Split ("train", "validation", "test") → (x, y)."""
        return self.load()

    def model(self, seed: int = 0) -> nn.Module:
        """A new, untrained network; the same seed gives the same weights, and no other randomness is touched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs, targets)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: str = "test") -> float:
        """The fraction of a split that the model gets right, in evaluation mode."""
        x, y = lookup("split", split, self.data)
        device = next(model.parameters()).device
        with evaluating(model):
            right = sum(
                int((model(inputs.to(device)).argmax(1).cpu() == targets).sum())
                for inputs, targets in zip(x.split(1024), y.split(1024), strict=True)
            )
        return right / len(y)

    def calibration(self, n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
        """`(x, y)` of n training samples drawn without replacement.

        Raises:
            ValueError: n is not between 1 and the number of training samples.
        """
        x, y = self.data["train"]
        if not 1 <= n <= len(x):
            raise ValueError(f"calibration(n) draws 1 to {len(x)} training samples, not {n}")
        index = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
        return x[index], y[index]

    def train(
        self,
        model: nn.Module,
        *,
        seed: int = 0,
        steps: int | None = None,
        lr: float | None = None,
        masks: Enforceable | None = None,
        objective: Objective = cross_entropy,
        on_step: OnStep | None = None,
        start: int = 0,
        stop: int | None = None,
        checkpoint: Path | None = None,
        label: str = "training",
    ) -> list[float]:
        """Train a model in place with this task's recipe, or with other `steps` or another `lr`.

        See `training.train` for the arguments. Returns the loss of each step.
        """
        given = {name: value for name, value in (("steps", steps), ("lr", lr)) if value is not None}
        how = replace(self.training, **given)  # type: ignore[arg-type]
        return train(
            model,
            self.data["train"],
            how,
            seed=seed,
            masks=masks,
            objective=objective,
            on_step=on_step,
            start=start,
            stop=stop,
            checkpoint=checkpoint,
            label=label,
        )

    def trained(self, seed: int = 0, *, until: float = 1.0) -> nn.Module:
        """A network trained by the recipe, from the cache if it has been trained before.

        The cache's key holds all that makes the result: data, recipe, seed, initial weights, the code of this folder
        and torch's version. A file that is broken is made again, with a warning. Interrupted training goes on later.

        Args:
            seed: of the initial weights and of the order of the data.
            until: the fraction of training after which to stop; less than 1 gives a network to rewind to.

        Raises:
            ValueError: `until` is not in [0, 1].
        """
        if not 0 <= until <= 1:
            raise ValueError(f"until is a fraction of training, in [0, 1], not {until}")
        model = self.model(seed)
        stop = round(until * self.training.steps)
        if stop == 0:
            return model
        key = digest(
            self.name,
            self.training,
            seed,
            stop,
            code_version("tasks"),
            torch.__version__,
            *(tensor for split in self.data.values() for tensor in split),
            *model.state_dict().values(),
        )
        path = cache_dir() / "models" / f"{self.name}-seed{seed}-{key}.safetensors"
        if path.exists():
            try:
                model.load_state_dict(load_tensors(path)[0])
            except (ValueError, RuntimeError) as error:
                warnings.warn(f"the cached network {path.name} is broken and is made again ({error})", stacklevel=2)
                path.unlink()
                model = self.model(seed)
            else:
                return model
        partial = path.with_suffix(".partial")
        self.train(model, seed=seed, stop=stop, checkpoint=partial, label=f"training {self.name}, seed {seed}")
        save_tensors(path, model.state_dict())
        partial.unlink(missing_ok=True)
        return model


TASKS = {
    made.name: made
    for made in (
        Task("digits-mlp", data.digits, lambda: models.mlp(64, 300, 100, 10), Training()),
        Task("digits-cnn", data.digits, lambda: models.cnn(8), Training(steps=400, lr=0.05)),
        Task("digits-resnet", data.digits, lambda: models.ResNet(1, 1, (8, 16, 32)), Training(steps=400)),
        Task("hard-digits-mlp", data.hard_digits, lambda: models.mlp(196, 300, 100, 10), Training(lr=0.05)),
        Task("hard-digits-cnn", data.hard_digits, lambda: models.cnn(14), Training(steps=500, lr=0.05)),
        Task(
            "fashion-mnist-cnn",
            data.fashion_mnist,
            lambda: models.cnn(28, (32, 64, 128)),
            Training(steps=5000, batch=128, lr=0.05, weight_decay=5e-4),
        ),
        Task(
            "cifar10-resnet20",
            data.cifar10,
            lambda: models.ResNet(3, 3, (16, 32, 64)),
            Training(steps=32_000, batch=128, weight_decay=1e-4, augment=True),
        ),
    )
}


def task(name: str) -> Task:
    """The task of this name; `TASKS` lists them.

    Raises:
        ValueError: there is no such task.
    """
    return lookup("task", name, TASKS)


__all__ = ["TASKS", "Task", "Training", "task", "train"]
