"""Running a model again from one layer on: what lies before the layer is remembered, not computed.

While a `Replay` is open, every module's outputs of one forward pass are kept. `resume(when)` runs the model again, but
each module whose work was over before the moment `when` hands out what it gave then. So a change in the last layer of
a hundred costs one layer, whatever the architecture: skips, branches and shared modules included, since modules are
called in the same order each time. A model that takes another path on other values is told so.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pruninglab.batches import Inputs, call
from pruninglab.recording import observed, writes
from pruninglab.watching import own_forward


@dataclass
class _Call:
    """One call of a module: which, the last call made inside it, what it returned, and what it wrote into its inputs.

    `written` is place among the inputs → their values afterwards; `same` the place of an input that was itself returned
    (`nn.Identity`, ReLU in place).
    """

    module: nn.Module
    last: int = -1
    output: Any = None
    written: dict[int, Tensor] = field(default_factory=dict)
    same: int | None = None


class Replay:
    """A forward pass of `model` on `inputs` that can be taken up again in the middle.

    To be used in a `with` statement; the model is in evaluation mode meanwhile, and no gradients are recorded.

    Attributes:
        outputs: what the model returned for these inputs as it was.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self.calls: list[_Call] = []
        self.now, self.when = 0, -1
        self.undo = ExitStack()

    def __enter__(self) -> "Replay":
        with ExitStack() as undo:  # undone at once if the first pass fails
            undo.enter_context(observed(self.model))
            undo.enter_context(torch.no_grad())
            for module in set(self.model.modules()):
                undo.enter_context(own_forward(module))
                module.__dict__["forward"] = partial(self._call, module, module.forward)
            self.outputs = _copied(call(self.model, self.inputs))
            self.undo = undo.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.undo.close()

    def runs(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether a module that holds one of these parameters was called."""
        called = {id(made.module) for made in self.calls}
        return any(id(module) in called for _, module in self._holders(parameters))

    def outputs_of(self, weight: nn.Parameter) -> int:
        """How many outputs the layers with this weight gave, over all calls, for each of its rows."""
        holders = {id(module) for _, module in self._holders([weight])}
        return sum(made.output.numel() for made in self.calls if id(made.module) in holders) // len(weight)

    def first_use(self, parameters: Iterable[nn.Parameter]) -> int:
        """The moment of the first call of a module that holds one of these parameters.

        A module's parameters may be read by the module around it (such as the output projection of attention); then it
        is the call of the nearest module around it that was called.
        """
        called, readers = {id(made.module) for made in self.calls}, set()
        for name, module in self._holders(parameters):
            while id(module) not in called:
                name = name.rpartition(".")[0]
                module = self.model.get_submodule(name)
            readers.add(id(module))
        return next(when for when, made in enumerate(self.calls) if id(made.module) in readers)

    def _holders(self, parameters: Iterable[nn.Parameter]) -> list[tuple[str, nn.Module]]:
        """The modules that hold one of these parameters as their own, under all their names."""
        ids = {id(parameter) for parameter in parameters}
        modules = self.model.named_modules(remove_duplicate=False)
        return [held for held in modules if any(id(own) in ids for own in held[1]._parameters.values())]

    def resume(self, when: int) -> Any:
        """The model's outputs with its weights as they are now, if nothing used before the moment `when` has changed.

        Raises:
            RuntimeError: the model called its modules in another order than before.
        """
        self.now, self.when = 0, when
        try:
            return call(self.model, self.inputs)
        finally:
            self.when = -1

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.when < 0:  # the first pass
            made = _Call(module)
            self.calls.append(made)
            given = _tensors(args, kwargs)
            before = [writes(x) for x in given]
            output = forward(*args, **kwargs)
            made.last, made.output = len(self.calls) - 1, _copied(output)
            made.written = {i: x.clone() for i, x in enumerate(given) if writes(x) != before[i]}
            made.same = next((i for i, x in enumerate(given) if x is output), None)
            return output
        if self.now >= self.when:  # everything from here on is new
            return forward(*args, **kwargs)
        made = self.calls[self.now]
        if made.module is not module:
            raise RuntimeError(f"{type(self.model).__name__} does not call its modules in the same order each time")
        if made.last < self.when:
            self.now = made.last + 1
            given = _tensors(args, kwargs)
            for i, values in made.written.items():
                given[i].copy_(values)
            return _copied(made.output) if made.same is None else given[made.same]
        self.now += 1
        return forward(*args, **kwargs)


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _copied(output: Any) -> Any:
    """Copies of all tensors in an output: models write into what modules return (`x += shortcut`)."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
