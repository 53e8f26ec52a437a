"""Taking a forward pass up again in the middle, against running it from the start."""

import copy
from functools import partial

import pytest
import torch
from helpers import same, snapshot
from small_networks import NETWORKS, images
from torch import nn

from pruninglab.curves import distortion_curves
from pruninglab.layers import prunable
from pruninglab.replay import Replay


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(1)
    return NETWORKS[request.param]().eval()


@pytest.fixture
def x():
    return images()


@torch.no_grad()
def test_a_replay_is_a_full_run(net, x):
    """After a change in any layer, from the moment of its first use on."""
    other, given = copy.deepcopy(net), x.clone()
    with Replay(net, x) as replay:
        assert torch.equal(replay.outputs, other(x))
        for name in prunable(net):
            weight, mirrored = net.get_parameter(name), other.get_parameter(name)
            when, before = replay.first_use([weight]), weight.clone()
            for factor in (0.0, -2.0, 1.0):
                mirrored.copy_(weight.copy_(factor * before))
                assert torch.equal(replay.resume(when), other(x)), (name, factor)
    assert torch.equal(x, given)


def test_what_lies_before_is_not_run_again(x):
    torch.manual_seed(0)
    model, seen = NETWORKS["residual"]().eval(), []
    with Replay(model, x) as replay, torch.no_grad():
        model.second.register_forward_hook(lambda *_: None)
        for name in ("stem", "first", "second", "head"):
            inner = model.get_submodule(name)
            inner._conv_forward = partial(_noted, seen, name, getattr(inner, "_conv_forward", None))
        for name in ("stem", "first", "second"):
            seen.clear()
            replay.resume(replay.first_use([model.get_submodule(name).weight]))
            assert seen == ["stem", "first", "second"][["stem", "first", "second"].index(name) :]


def _noted(seen, name, run, *args):
    seen.append(name)
    return run(*args)


def test_a_replaced_forward_is_put_back_also_after_an_error(x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    own = model.first.forward
    model.first.forward = replaced = lambda inputs: 2 * own(inputs)  # as adapters and quantisers do
    model.first.register_forward_hook(lambda _module, _args, output: output + 1)
    with torch.no_grad():
        expected = model(x)
    with Replay(model, x) as replay:
        assert torch.equal(replay.outputs, expected)
        assert torch.equal(replay.resume(replay.first_use([model.second.weight])), expected)
    assert model.first.__dict__["forward"] is replaced
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == ["first"]

    def broken(_inputs):
        raise ArithmeticError("half way")

    model.second.forward = broken
    with pytest.raises(ArithmeticError, match="half way"):
        distortion_curves(model, x, levels=3)
    assert model.first.__dict__["forward"] is replaced
    assert model.second.__dict__["forward"] is broken
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == ["first", "second"]


def test_hooks_run_where_modules_run(x):
    """A hook that scales what a layer gives is part of the network, and curves see it."""
    torch.manual_seed(0)
    model = NETWORKS["concatenated"]().eval()
    plain = distortion_curves(model, x, levels=4)
    model.left.register_forward_hook(lambda _module, _args, output: 3 * output)
    hooked = distortion_curves(model, x, levels=4)
    assert hooked.distortion["left.weight"] == pytest.approx(9 * plain.distortion["left.weight"], rel=1e-4)
    assert hooked.distortion["right.weight"] == pytest.approx(plain.distortion["right.weight"], rel=1e-4)


class Turning(nn.Module):
    """Calls two layers in another order once a later one is empty."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first, second = (self.a, self.b) if self.last.weight.any() else (self.b, self.a)
        return self.last(second(first(x)))


def test_a_model_that_takes_another_path_is_told():
    model, x = Turning(), torch.randn(3, 4)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="Turning does not call its modules in the same order"):
        distortion_curves(model, x, levels=3)
    assert same(before, snapshot(model))
    assert len(distortion_curves(model, x, levels=[0, 0.9]).distortion) == 3  # not as long as something is left
