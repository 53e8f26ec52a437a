"""Plausible wrong answers to `recalibrate` (chapter 3); `check(…, strictly=True)` rejects each."""

import torch
from torch import nn


def _norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def wrong_1(model, x):
    """One pass with the ordinary momentum: nine tenths of the old statistics stay."""
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def wrong_2(model, x):
    """Resets, but takes in only a tenth of what is seen."""
    for norm in _norms(model):
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def wrong_3(model, x):
    """Stays in training mode."""
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(x)
    for norm in _norms(model):
        norm.momentum = 0.1
    return model


def wrong_4(model, x):
    """Resets, and runs in evaluation mode, in which nothing is gathered."""
    for norm in _norms(model):
        norm.reset_running_stats()
    model.eval()
    with torch.no_grad():
        model(x)
    return model


def wrong_5(model, x):
    """Leaves momentum at None."""
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def wrong_6(model, x):
    """Puts the whole model into training mode, dropout too."""
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(x)
    for norm in _norms(model):
        norm.momentum = 0.1
    return model.eval()


def wrong_7(model, x):
    """Does not forget the old statistics of a norm that has counted batches before."""
    for norm in _norms(model):
        norm.momentum = 0.5
        norm.train()
    with torch.no_grad():
        model(x)
    for norm in _norms(model):
        norm.momentum = 0.1
    return model.eval()


def wrong_8(model, x):
    """Resets weight and bias of the norms as well."""
    for norm in _norms(model):
        norm.reset_parameters()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(x)
    for norm in _norms(model):
        norm.momentum = 0.1
    return model.eval()


def wrong_9(model, x):
    """Only the first norm."""
    norm = _norms(model)[0]
    norm.reset_running_stats()
    norm.momentum = None
    norm.train()
    with torch.no_grad():
        model(x)
    norm.momentum = 0.1
    return model.eval()


def wrong_10(model, x):
    """Gives nothing back."""
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(x)
    for norm in _norms(model):
        norm.momentum = 0.1
    model.eval()


def wrong_11(model, x):
    """Feeds picture after picture, each of which counts as a batch of one."""
    for norm in _norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for one in x.split(1):
            model(one)
    for norm in _norms(model):
        norm.momentum = 0.1
    return model.eval()
