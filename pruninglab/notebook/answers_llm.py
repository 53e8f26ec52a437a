"""The exercises of chapter 8: Wanda's mask, the best that the others can do, and merging an adapter under a mask.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruninglab.criteria.activations import wanda
from pruninglab.curvature.obs import obs_update
from pruninglab.language.selection import select
from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heavy(tokens: int, channels: int, seed: int = 0) -> Tensor:
    """Inputs as in a language model: each channel with its own mean, rare large values, some far louder than others."""
    loud, mean = 1.5 * normal(channels, seed=seed + 1000), 2 * normal(channels, seed=seed + 2000)
    return (normal(tokens, channels, seed=seed) ** 3 + mean) * loud.exp()


def told(values: Tensor) -> str:
    """A few numbers, short."""
    return ", ".join(f"{value:.3g}" for value in values.tolist())


def is_tensor(got: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What was returned is a tensor of this shape and dtype."""
    assert isinstance(got, Tensor), f"it gave {type(got).__name__}, not a tensor"
    assert got.shape == shape, f"the shape is {tuple(got.shape)}, not {shape}"
    assert got.dtype == dtype, f"the dtype is {got.dtype}, not {dtype}"


def untouched(f: Function, **given: Any) -> None:
    """The function leaves what it is given as it is."""
    before = {name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}
    f(*given.values())
    for name, value in before.items():
        assert torch.equal(given[name], value), f"your function wrote into {name}, which it was given"


# ── wanda_mask ────────────────────────────────────────────────────────────────────────────────────────────────────


def _wanda_mask(weight: Tensor, inputs: Tensor, sparsity: float) -> Tensor:
    n = weight.shape[1]
    goes = math.floor(sparsity * n + 1e-9)  # 0.29 · 100 is 28.999999999999996 to a computer
    return select(wanda(weight, inputs.norm(dim=0)), goes / n)


wanda_mask = exercise("wanda_mask", _wanda_mask)


@wanda_mask.holds("it gives a bool tensor of the weight's shape")
def _(f: Function) -> None:
    is_tensor(f(normal(3, 8), normal(20, 8, seed=1), 0.5), (3, 8), torch.bool)


@wanda_mask.holds("nothing that it is given changes")
def _(f: Function) -> None:
    untouched(f, weight=normal(3, 8), inputs=normal(20, 8, seed=1), sparsity=0.5)


@wanda_mask.holds("each row loses the same number of weights, rounded down")
def _(f: Function) -> None:
    weight = normal(4, 10) * torch.tensor([[1.0], [100.0], [0.01], [1.0]])  # among all, one row would lose everything
    for sparsity, n in ((0.5, 10), (0.25, 10), (0.5, 7), (0.0, 10)):
        mask = f(weight[:, :n], normal(20, n, seed=1), sparsity)
        gone = (~mask).sum(1).tolist()
        want = math.floor(sparsity * n)
        assert gone == [want] * 4, f"sparsity {sparsity} of {n} inputs is {want} for each row; yours lost {gone}"


@wanda_mask.holds("a small weight on a loud input is worth more than a large one on a quiet input")
def _(f: Function) -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
    mask = f(weight, torch.diag(torch.tensor([1.0, -1.0, 1.0, -10.0])), 0.5)
    assert mask.tolist() == [[True, False, False, True]], (
        f"|w| is 4, 3, 2, 1 and ‖x‖ is 1, 1, 1, 10, so the scores are 4, 3, 2, 10; but you keep {mask.tolist()[0]}"
    )


@wanda_mask.holds("a channel sixteen times as loud, read with weights a sixteenth as large, changes nothing")
def _(f: Function) -> None:
    weight, inputs = normal(6, 12), heavy(40, 12)
    louder = torch.where(torch.arange(12) % 4 == 1, 16.0, 1.0)  # a power of 2: no rounding
    one, other = f(weight, inputs, 0.5), f(weight / louder, inputs * louder, 0.5)
    apart = int((one != other).sum())
    assert not apart, f"the layer computes the same, but {apart} of its 72 weights are treated in another way"


@wanda_mask.holds("in each row those with the least |w|·‖x‖₂ go, the norm taken over all tokens")
def _(f: Function) -> None:
    for seed in range(10):
        weight, inputs = normal(3, 9, seed=seed), heavy(25, 9, seed=seed)
        mask = f(weight, inputs, 0.5)
        norms = [math.sqrt(math.fsum(x * x for x in channel)) for channel in inputs.T.tolist()]
        for i, row in enumerate(weight.tolist()):
            scores = [abs(w) * norm for w, norm in zip(row, norms, strict=True)]
            best = max((j for j in range(9) if not mask[i, j]), key=scores.__getitem__)
            worst = min((j for j in range(9) if mask[i, j]), key=scores.__getitem__)
            assert scores[best] < scores[worst], (
                f"in row {i} the weight {best} with |w|·‖x‖₂ = {scores[best]:.3g} went, and {worst} with "
                f"{scores[worst]:.3g} stayed. ‖x‖₂ is the root of the sum of squares, without taking off the mean"
            )


@wanda_mask.holds("equal scores are not all kept or all removed together")
def _(f: Function) -> None:
    for name, inputs in (("all 1", torch.ones(5, 8)), ("all 0", torch.zeros(5, 8))):
        gone = (~f(torch.ones(3, 8), inputs, 0.5)).sum(1).tolist()
        assert gone == [4, 4, 4], (
            f"equal weights, inputs {name}: rows lost {gone}, not 4 each; a threshold cannot tell them apart"
        )


# ── best_repair ───────────────────────────────────────────────────────────────────────────────────────────────────


def _best_repair(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    return obs_update(weight[None], hessian, ~keep)[0]


best_repair = exercise("best_repair", _best_repair)


def _row(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs that have much to do with each other: a row, XᵀX, a mask that keeps about half, and X."""
    x = normal(3 * n, n, seed=seed) @ (torch.eye(n, dtype=torch.float64) + 0.5 * normal(n, n, seed=seed + 100))
    keep = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) < (n + 1) // 2
    return normal(n, seed=seed + 200), x.T @ x, keep, x


@best_repair.holds("it gives a row of the same length, with exact zeros where weights go")
def _(f: Function) -> None:
    weight, hessian, keep, _ = _row(7)
    got = f(weight, hessian, keep)
    is_tensor(got, (7,), torch.float64)
    assert not got[~keep].any(), f"the weights that go should be 0, not {told(got[~keep])}"


@best_repair.holds("nothing that it is given changes")
def _(f: Function) -> None:
    weight, hessian, keep, _ = _row(7)
    untouched(f, weight=weight, hessian=hessian, keep=keep)


@best_repair.holds("if all stay, nothing moves; if inputs have nothing to do with each other, neither")
def _(f: Function) -> None:
    weight, hessian, keep, _ = _row(5)
    got = f(weight, hessian, torch.ones(5, dtype=torch.bool))
    assert torch.allclose(got, weight), f"nothing goes, but {told(weight)} became {told(got)}"
    got = f(weight, torch.diag(hessian.diagonal()), keep)
    assert torch.allclose(got, weight * keep), f"H is diagonal: nobody can help, but {told(weight)} became {told(got)}"


@best_repair.holds("of two inputs that are half alike, one takes over half of what the other did")
def _(f: Function) -> None:
    hessian = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    got = f(torch.tensor([1.0, 2.0]), hessian, torch.tensor([True, False]))
    assert math.isclose(float(got[0]), 2.0, rel_tol=1e-5), f"1 + 0.5 · 2 is 2, not {float(got[0]):.4g}"


@best_repair.holds("no other weights at these places give a smaller error")
def _(f: Function) -> None:
    for seed in range(20):
        weight, hessian, keep, x = _row(8, seed)
        got, best = f(weight, hessian, keep), torch.zeros_like(weight)
        best[keep] = torch.linalg.lstsq(x[:, keep], (x @ weight)[:, None]).solution[:, 0]  # from X, without H
        mine, least = (float((x @ (weight - row)).square().sum()) for row in (got, best))
        assert torch.allclose(got, best, rtol=1e-4, atol=1e-6), (
            f"where you put those that stay the error is {mine:.4g}; {least:.4g} is possible. All that stay help at "
            "once: solve with the block H_SS of those that stay (not with a block of H⁻¹, nor one by one)"
        )


@best_repair.holds("if all go, zeros are left")
def _(f: Function) -> None:
    got = f(normal(4), torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.bool))
    assert not got.any(), f"nothing stays, but the row is {told(got)}"


# ── merge_lora ────────────────────────────────────────────────────────────────────────────────────────────────────


def _merge_lora(weight: Tensor, keep: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight + torch.where(keep, scale * (b @ a), 0)


merge_lora = exercise("merge_lora", _merge_lora)


def _adapted(outputs: int, inputs: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keep = normal(outputs, inputs, seed=seed) > 0
    a, b = normal(rank, inputs, seed=seed + 1), normal(outputs, rank, seed=seed + 2)
    return normal(outputs, inputs, seed=seed + 3) * keep, keep, a, b


@merge_lora.holds("it gives a weight of the same shape")
def _(f: Function) -> None:
    is_tensor(f(*_adapted(3, 5, 2), 0.5), (3, 5), torch.float64)


@merge_lora.holds("nothing that it is given changes")
def _(f: Function) -> None:
    weight, keep, a, b = _adapted(3, 5, 2)
    untouched(f, weight=weight, keep=keep, a=a, b=b, scale=0.5)


@merge_lora.holds("an adapter that has learned nothing yet (B = 0) changes nothing")
def _(f: Function) -> None:
    weight, keep, a, b = _adapted(3, 5, 2)
    assert torch.equal(f(weight, keep, a, 0 * b, 0.5), weight), "B is 0, but another weight came out"


@merge_lora.holds("what is pruned stays exactly zero")
def _(f: Function) -> None:
    weight, keep, a, b = _adapted(6, 8, 2)
    back = int((f(weight, keep, a, b, 0.5)[~keep] != 0).sum())
    assert not back, (
        f"{back} of {int((~keep).sum())} pruned weights came back. B·A has no zeros: the mask has to cut it"
    )


@merge_lora.holds("the layer gives what the masked adapter gave")
def _(f: Function) -> None:
    for outputs, inputs, rank, scale in ((1, 1, 1, 2.0), (4, 4, 4, 0.5), (3, 7, 2, 2.0), (7, 3, 1, -1.5)):
        weight, keep, a, b = _adapted(outputs, inputs, rank)
        merged, x = f(weight, keep, a, b, scale), normal(10, inputs, seed=9)
        for o in range(outputs):
            want = x @ weight[o]
            for i in range(inputs):
                if keep[o, i]:
                    want = want + scale * sum(float(b[o, r] * a[r, i]) for r in range(rank)) * x[:, i]
            apart = float((x @ merged[o] - want).abs().max())
            assert apart < 1e-6, (
                f"{inputs} inputs, {outputs} outputs, rank {rank}, scale {scale}: output {o} is off by {apart:.2g}. "
                "The scale counts once, as it is given"
            )


@merge_lora.holds("a weight that stays learns even if it happens to be 0")
def _(f: Function) -> None:
    one = torch.ones(1, 2)
    got = f(torch.tensor([[0.0, 0.0]]), torch.tensor([[True, False]]), one, torch.ones(1, 1), 3.0)
    assert got.tolist() == [[3.0, 0.0]], (
        f"the first weight is 0 but kept, so it becomes 3: [[3, 0]], not {got.tolist()}. Go by the mask, not by zeros"
    )
