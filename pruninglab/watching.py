"""Running a model in order to see what it does, so that it is afterwards as it was before."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pruninglab.tasks.training import evaluating


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """What a forward writes into its modules (a cache, a counter) is put back: a run on colours has no numbers."""
    ordinary = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = {module: (dict(vars(module)), dict(module._buffers)) for module in ordinary}
    values = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        yield
    finally:
        for module, (attributes, buffers) in before.items():
            for now, then in ((vars(module), attributes), (module._buffers, buffers)):
                now.clear()
                now.update(then)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextmanager
def own_forward(module: nn.Module) -> Iterator[None]:
    """Whatever stands in place of a module's `forward` meanwhile, afterwards it is the one that was there before."""
    before = vars(module).get("forward")
    try:
        yield
    finally:
        vars(module).pop("forward", None)
        if before is not None:
            vars(module)["forward"] = before


@contextmanager
def watched(model: nn.Module, where: list[str]) -> Iterator[None]:
    """Evaluation mode, no gradients, attention in single operations; `where` always ends in the module that runs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            where.append(names[module])

    def leave(module: nn.Module, *_: Any) -> None:  # not after an error: then `where` ends in the module that failed
        if module in names:
            del where[-1]

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as undo:
        undo.callback(register_module_forward_pre_hook(enter).remove)
        undo.callback(register_module_forward_hook(leave).remove)
        undo.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for context in (evaluating(model), torch.no_grad(), undisturbed(model), sdpa_kernel(SDPBackend.MATH)):
            undo.enter_context(context)
        yield
