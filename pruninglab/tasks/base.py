"""What a task is: data, a network and a way to train it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.files import cache_dir, code_version, digest, load_tensors, save_tensors, writable
from pruninglab.fingerprint import fingerprint
from pruninglab.naming import lookup, whole
from pruninglab.tasks.data import Splits
from pruninglab.tasks.training import Training, evaluating, rows, train


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

    @property
    def version(self) -> str:
        """A hash of all that makes the task: name, recipe, data, and the code that builds, trains and measures."""
        return digest(fingerprint((type(self), self.name, self.training, self.build)), self._data_version)

    @cached_property
    def _data_version(self) -> str:
        return digest(*self.data, *(tensor for split in self.data.values() for tensor in split))

    def model(self, seed: int = 0) -> nn.Module:
        """A new, untrained network; the same seed gives the same weights, and no other randomness is touched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(whole("seed", seed))
            return self.build().eval()

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(rows(outputs), targets.flatten())

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: str = "test") -> float:
        """The fraction of a split that the model gets right, in evaluation mode."""
        x, y = self._split(split)
        device = next(model.parameters()).device
        with evaluating(model):
            right = sum(
                int((rows(model(inputs.to(device))).argmax(1).cpu() == targets.flatten()).sum())
                for inputs, targets in zip(x.split(1024), y.split(1024), strict=True)
            )
        return right / y.numel()

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        return lookup("split", split, self.data)

    def calibration(self, n: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
        """`(x, y)` of n training samples drawn without replacement.

        Raises:
            ValueError: n is not between 1 and the number of training samples.
        """
        x, y = self.data["train"]
        if not 1 <= n <= len(x):
            raise ValueError(f"calibration(n) draws 1 to {len(x)} training samples, not {n}")
        index = torch.randperm(len(x), generator=torch.Generator().manual_seed(whole("seed", seed)))[: whole("n", n)]
        return x[index], y[index]

    def train(
        self,
        model: nn.Module,
        *,
        seed: int = 0,
        steps: int | None = None,
        lr: float | None = None,
        **options: Any,
    ) -> list[float]:
        """Train a model in place with this task's recipe, or with other `steps` or another `lr`.

        The other options are those of `training.train`; the objective is this task's `loss`. Returns the loss of each
        step.
        """
        if type(self).loss is not Task.loss:
            options = {"objective": lambda model, x, y: self.loss(model(x), y)} | options
        given = {name: value for name, value in (("steps", steps), ("lr", lr)) if value is not None}
        how = replace(self.training, **given)  # type: ignore[arg-type]
        return train(model, self.data["train"], how, seed=whole("seed", seed), **options)

    def trained(self, seed: int = 0, *, until: float = 1.0) -> nn.Module:
        """A network trained by the recipe, from the cache if it has been trained before.

        The cache's key holds all that makes the result: the task's version, seed, initial weights, the code of this
        folder and torch's version. A file that is broken is made again, with a warning. Interrupted training goes on
        later. Where nothing can be written, the network is trained each time, with a warning.

        Args:
            seed: of the initial weights and of the order of the data.
            until: the fraction of training after which to stop; less than 1 gives a network to rewind to.

        Raises:
            ValueError: `until` is not in [0, 1].
        """
        if not 0 <= until <= 1:
            raise ValueError(f"until is a fraction of training, in [0, 1], not {until}")
        seed = whole("seed", seed)
        model = self.model(seed)
        stop = round(until * self.training.steps)
        if stop == 0:
            return model
        made_by = code_version("tasks"), torch.__version__
        key = digest(self.version, seed, stop, *made_by, *model.state_dict().values())
        path = cache_dir() / "models" / f"{self.name}-seed{seed}-{key}.safetensors"
        try:
            model.load_state_dict(load_tensors(path)[0])
            return model
        except FileNotFoundError:
            pass
        except (ValueError, RuntimeError) as error:
            warnings.warn(f"the cached network {path.name} is broken and is made again ({error})", stacklevel=2)
            model = self.model(seed)
        partial = path.with_suffix(".partial") if writable(path.parent) else None
        self.train(model, seed=seed, stop=stop, checkpoint=partial, label=f"training {self.name}, seed {seed}")
        if partial is None:
            why = f"network {path.name} could not be cached in {path.parent}; set PRUNINGLAB_DATA to another folder"
            warnings.warn(why, stacklevel=2)
        else:
            save_tensors(path, model.state_dict())
            partial.unlink(missing_ok=True)
        return model

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A built-in task is sent to other processes by its name, so that each of them loads its data only once."""
        from pruninglab.tasks import BUILT_IN, task

        return (task, (self.name,)) if BUILT_IN.get(self.name) is self else super().__reduce_ex__(protocol)
