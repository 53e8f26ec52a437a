"""Plausible wrong answers to `remove_filter` (chapter 3); `check(…, strictly=True)` rejects each."""

import copy

import torch
from torch import nn


def _copies(*layers):
    return tuple(copy.deepcopy(layer) for layer in layers)


def _cut(conv, norm, following, left):
    """The right answer, in place."""
    conv.weight.data = conv.weight.data[left]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = tensor.data[left]
    following.weight.data = following.weight.data[:, left]
    conv.out_channels = norm.num_features = following.in_channels = len(left)
    return conv, norm, following


def wrong_1(conv, norm, following, k):
    """Works on the layers that were given."""
    return _cut(conv, norm, following, [i for i in range(conv.out_channels) if i != k])


def wrong_2(conv, norm, following, k):
    """Cuts a filter of the following layer instead of an input."""
    conv, norm, following = _copies(conv, norm, following)
    left = [i for i in range(conv.out_channels) if i != k]
    conv.weight.data = conv.weight.data[left]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = tensor.data[left]
    following.weight.data = following.weight.data[[i for i in range(following.out_channels) if i != k]]
    conv.out_channels = norm.num_features = len(left)
    following.out_channels -= 1
    return conv, norm, following


def wrong_3(conv, norm, following, k):
    """Forgets the running statistics, which are no parameters."""
    conv, norm, following = _copies(conv, norm, following)
    left = [i for i in range(conv.out_channels) if i != k]
    mean, var = norm.running_mean, norm.running_var
    _cut(conv, norm, following, left)
    norm.running_mean, norm.running_var = mean.new_zeros(6), var.new_ones(6)
    return conv, norm, following


def wrong_4(conv, norm, following, k):
    """Makes a new norm, which has forgotten everything."""
    conv, norm, following = _cut(*_copies(conv, norm, following), [i for i in range(conv.out_channels) if i != k])
    return conv, nn.BatchNorm2d(conv.out_channels).eval(), following


def wrong_5(conv, norm, following, k):
    """Makes a new convolution, without the stride of the old one."""
    small, norm, following = _cut(*_copies(conv, norm, following), [i for i in range(conv.out_channels) if i != k])
    fresh = nn.Conv2d(3, small.out_channels, 3, padding=1, bias=False)
    fresh.weight.data = small.weight.data
    return fresh, norm, following


def wrong_6(conv, norm, following, k):
    """Does not tell the layers how wide they are now."""
    layers = _cut(*_copies(conv, norm, following), [i for i in range(conv.out_channels) if i != k])
    layers[0].out_channels = layers[1].num_features = layers[2].in_channels = conv.out_channels
    return layers


def wrong_7(conv, norm, following, k):
    """Only writes zeros."""
    conv, norm, following = _copies(conv, norm, following)
    with torch.no_grad():
        conv.weight[k] = 0
        norm.weight[k] = 0
        norm.bias[k] = 0
        following.weight[:, k] = 0
    return conv, norm, following


def wrong_8(conv, norm, following, k):
    """Always cuts the last one."""
    return _cut(*_copies(conv, norm, following), list(range(conv.out_channels - 1)))


def wrong_9(conv, norm, following, k):
    """Cuts the following layer at its neighbour."""
    n = conv.out_channels
    given, (conv, norm, following) = following, _cut(*_copies(conv, norm, following), [i for i in range(n) if i != k])
    following.weight.data = given.weight.data[:, [i for i in range(n) if i != (k + 1) % n]]
    return conv, norm, following


def wrong_10(conv, norm, following, k):
    """Wrong for k = 0: `weight[:-0]` is empty and `k or …` takes 0 for nothing given."""
    k = k or conv.out_channels - 1
    return _cut(*_copies(conv, norm, following), [i for i in range(conv.out_channels) if i != k])


def wrong_11(conv, norm, following, k):
    """Gives the state dicts."""
    layers = _cut(*_copies(conv, norm, following), [i for i in range(conv.out_channels) if i != k])
    return [layer.state_dict() for layer in layers]


def wrong_12(conv, norm, following, k):
    """Keeps filter k and removes all others."""
    return _cut(*_copies(conv, norm, following), [k])
