"""The exercises of the book: for each, the answer it goes on with, and the properties a right answer has.

Properties, not values: shape, dtype, untouched input, exact counts, order, ties, the ends of the range. The first one
that fails is the one shown, so they go from the plain to the subtle.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.allocation.threshold import top_masks
from pruninglab.criteria import Scores
from pruninglab.during import cubic
from pruninglab.measure import flops
from pruninglab.notebook.exercises import exercise
from pruninglab.storage import pack

Function = Callable[..., Any]


def _sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── chapter 0 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _fraction_removed(mask: Tensor) -> float:
    return 1 - int(mask.sum()) / mask.numel()


fraction_removed = exercise("fraction_removed", _fraction_removed)


@fraction_removed.holds("it gives one plain number")
def _(f: Function) -> None:
    got = f(torch.tensor([[True, False], [True, True]]))
    assert isinstance(got, float), f"it gave {got!r}, of type {type(got).__name__}, not a float"


@fraction_removed.holds("three kept of four means a quarter is removed")
def _(f: Function) -> None:
    got = f(torch.tensor([[True, False], [True, True]]))
    assert math.isclose(got, 0.25, abs_tol=1e-6), f"it gave {got}. True means *kept*"


@fraction_removed.holds("a mask that keeps everything gives 0, one that keeps nothing gives 1")
def _(f: Function) -> None:
    full, empty = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    assert f(full) == 0, f"everything kept: it gave {f(full)}"
    assert f(empty) == 1, f"nothing kept: it gave {f(empty)}"


@fraction_removed.holds("it counts entries, whatever the shape")
def _(f: Function) -> None:
    mask = _sample(5, 3, 3, 3) > 0.3
    expected = sum(not kept for kept in mask.flatten().tolist()) / 135
    assert math.isclose(f(mask), expected, abs_tol=1e-6), f"for a 5×3×3×3 mask it gave {f(mask)}, not {expected}"


# ── chapter 1 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _conv_macs(inputs: int, outputs: int, kernel: int, height: int, width: int) -> int:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return flops(layer, torch.zeros(1, inputs, height, width)) // 2


conv_macs = exercise("conv_macs", _conv_macs)


@conv_macs.holds("a 1×1 convolution from one channel to one, over one position, is one multiplication")
def _(f: Function) -> None:
    assert f(1, 1, 1, 1, 1) == 1, f"it gave {f(1, 1, 1, 1, 1)}"


@conv_macs.holds("every position of the output costs the same")
def _(f: Function) -> None:
    assert f(1, 1, 1, 8, 6) == 48, f"8×6 positions: it gave {f(1, 1, 1, 8, 6)}, not 48. Is there work at each position?"


@conv_macs.holds("each output looks at every input channel")
def _(f: Function) -> None:
    assert f(3, 5, 1, 1, 1) == 15, f"3 channels in, 5 out: it gave {f(3, 5, 1, 1, 1)}, not 15"


@conv_macs.holds("the kernel is a square")
def _(f: Function) -> None:
    assert f(1, 1, 3, 1, 1) == 9, f"a 3×3 kernel: it gave {f(1, 1, 3, 1, 1)}, not 9"


@conv_macs.holds("multiply–adds count once, and the result is a whole number")
def _(f: Function) -> None:
    got = f(16, 32, 3, 4, 4)
    assert isinstance(got, int), f"it gave {got!r}, not an int"
    assert got == 73728, (
        f"16 → 32 channels, 3×3, 4×4 positions: it gave {got}; torch's counter says 147456 FLOPs, 2 each"
    )


def _bitmap_bytes(weight: Tensor) -> int:
    n = weight.numel()
    return -(-n // 8) + int(torch.count_nonzero(weight)) * weight.element_size()


bitmap_bytes = exercise("bitmap_bytes", _bitmap_bytes)


@bitmap_bytes.holds("it gives a whole number of bytes")
def _(f: Function) -> None:
    got = f(torch.zeros(8, 8))
    assert isinstance(got, int), f"it gave {got!r}, of type {type(got).__name__}"


@bitmap_bytes.holds("64 zeros need one bit each, and nothing else")
def _(f: Function) -> None:
    assert f(torch.zeros(8, 8)) == 8, f"it gave {f(torch.zeros(8, 8))} bytes, not 8"


@bitmap_bytes.holds("each value that is not zero costs its own four bytes besides")
def _(f: Function) -> None:
    weight = torch.zeros(8, 8)
    weight[0, :3] = torch.tensor([1.0, -2.0, 0.5])
    assert f(weight) == 8 + 12, f"three values: it gave {f(weight)}, not 8 + 12. Do negative values count?"


@bitmap_bytes.holds("a last byte that is not full still is a byte")
def _(f: Function) -> None:
    assert f(torch.zeros(3, 3)) == 2, f"9 zeros: it gave {f(torch.zeros(3, 3))} bytes, not 2"


@bitmap_bytes.holds("half-precision values cost two bytes")
def _(f: Function) -> None:
    got = f(torch.ones(4, 4, dtype=torch.bfloat16))
    assert got == 2 + 32, f"16 values in bfloat16: it gave {got}, not 2 + 32"


@bitmap_bytes.holds("it agrees with what the library really stores")
def _(f: Function) -> None:
    left = _sample(30, 20, seed=1) > 0.8
    weight = _sample(30, 20).where(left, 0)  # a product would leave −0 behind, and −0 is stored
    stored = pack(weight)
    real = stored["bitmap"].nbytes + stored["values"].nbytes
    assert f(weight) == real, f"it gave {f(weight)}; the stored bitmap and values are {real} bytes"


# ── chapter 2 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    keep = math.floor(weight.numel() * (1 - sparsity) + 0.5)
    return top_masks({"weight": Scores.of("weight", weight.abs())}, keep)["weight"]


magnitude_mask = exercise("magnitude_mask", _magnitude_mask)


@magnitude_mask.holds("it gives a bool tensor of the weight's shape")
def _(f: Function) -> None:
    weight = _sample(4, 5)
    got = f(weight, 0.5)
    assert isinstance(got, Tensor), f"it gave a {type(got).__name__}"
    assert got.dtype == torch.bool, f"the mask's dtype is {got.dtype}, not torch.bool"
    assert got.shape == weight.shape, f"the mask's shape is {tuple(got.shape)}, not {tuple(weight.shape)}"


@magnitude_mask.holds("the weight itself is not changed")
def _(f: Function) -> None:
    weight = _sample(4, 5)
    before = weight.clone()
    f(weight, 0.5)
    assert torch.equal(weight, before), "your function wrote into its input"


@magnitude_mask.holds("exactly the asked-for share is removed")
def _(f: Function) -> None:
    for sparsity in (0.1, 0.5, 0.8, 0.95):
        kept = int(f(_sample(10, 20), sparsity).sum())
        expected = math.floor(200 * (1 - sparsity) + 0.5)
        assert kept == expected, f"sparsity {sparsity} of 200 weights: {kept} kept, not {expected}"


@magnitude_mask.holds("what is kept is larger, in magnitude, than what is removed")
def _(f: Function) -> None:
    weight = _sample(10, 20)
    mask = f(weight, 0.7)
    kept, removed = float(weight[mask].abs().min()), float(weight[~mask].abs().max())
    assert kept >= removed, f"the smallest kept is |{kept:.3f}|, but a |{removed:.3f}| was removed. Is True = keep?"


@magnitude_mask.holds("sparsity 0 keeps everything")
def _(f: Function) -> None:
    assert f(_sample(3, 3), 0.0).all(), "something was removed at sparsity 0"


@magnitude_mask.holds("equal weights are not all kept or all removed together")
def _(f: Function) -> None:
    kept = int(f(torch.ones(4, 5), 0.5).sum())
    assert kept == 10, (
        f"20 equal weights at sparsity 0.5: {kept} kept, not 10. A threshold alone cannot tell them apart"
    )
    first = bool(f(torch.ones(40, 50), 0.5).flatten()[:1000].all())
    assert first, "of equal weights the first ones are to be kept; argsort(stable=True) keeps their order"


@magnitude_mask.holds("it works for a convolution's weight, and for one that is not contiguous")
def _(f: Function) -> None:
    conv = f(_sample(8, 3, 3, 3), 0.5)
    assert int(conv.sum()) == 108, f"8×3×3×3 at 0.5: {int(conv.sum())} kept, not 108"
    weight = _sample(6, 4)
    assert torch.equal(f(weight.T, 0.5), f(weight.T.contiguous(), 0.5)), "a transposed weight gave another mask"


def _cubic_sparsity(t: float, final: float) -> float:
    return cubic(t, final)


cubic_sparsity = exercise("cubic_sparsity", _cubic_sparsity)


@cubic_sparsity.holds("it starts at 0 and ends at the final sparsity")
def _(f: Function) -> None:
    assert math.isclose(f(0.0, 0.9), 0.0, abs_tol=1e-12), f"at t = 0 it gave {f(0.0, 0.9)}"
    assert math.isclose(f(1.0, 0.9), 0.9), f"at t = 1 it gave {f(1.0, 0.9)}, not 0.9"


@cubic_sparsity.holds("it never falls")
def _(f: Function) -> None:
    values = [f(i / 20, 0.9) for i in range(21)]
    assert all(a <= b + 1e-12 for a, b in pairwise(values)), f"it falls somewhere: {values}"


@cubic_sparsity.holds("it rises steeply first and gently at the end")
def _(f: Function) -> None:
    early, late = f(0.1, 0.9), 0.9 - f(0.9, 0.9)
    assert early > late, f"the first tenth adds {early:.3f}, the last {late:.3f}"


@cubic_sparsity.holds("half-way, an eighth of the final sparsity is still to come")
def _(f: Function) -> None:
    assert math.isclose(f(0.5, 0.8), 0.7), f"f(0.5, 0.8) gave {f(0.5, 0.8)}, not 0.7"


@cubic_sparsity.holds("before the window it is 0, after it the final sparsity")
def _(f: Function) -> None:
    assert math.isclose(f(-0.5, 0.9), 0.0, abs_tol=1e-12), f"at t = −0.5 it gave {f(-0.5, 0.9)}"
    assert math.isclose(f(1.5, 0.9), 0.9), f"at t = 1.5 it gave {f(1.5, 0.9)}"


# ── chapter 3 ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Those of later chapters make themselves known, in order.
from pruninglab.notebook import answers_structured, answers_lottery, answers_sparse, answers_rate, answers_curvature  # noqa: E402, F401, I001
from pruninglab.notebook import answers_llm, answers_llm_structured, answers_own  # noqa: E402, F401
