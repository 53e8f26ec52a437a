"""The exercises of chapter 9: FLAP's score and its bias, and how much a whole block does.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pruninglab.notebook.answers_llm import Function, heavy, is_tensor, normal, told, untouched
from pruninglab.notebook.exercises import exercise

# ── fluctuation ───────────────────────────────────────────────────────────────────────────────────────────────────


def _fluctuation(inputs: Tensor, weight: Tensor) -> Tensor:
    return inputs.var(0, correction=0) * weight.square().sum(0)


fluctuation = exercise("fluctuation", _fluctuation)


@fluctuation.holds("it gives one number for each input channel")
def _(f: Function) -> None:
    is_tensor(f(normal(20, 5), normal(3, 5, seed=1)), (5,), torch.float64)


@fluctuation.holds("nothing that it is given changes")
def _(f: Function) -> None:
    untouched(f, inputs=normal(20, 5), weight=normal(3, 5, seed=1))


@fluctuation.holds("a channel that never changes scores 0, however large it is")
def _(f: Function) -> None:
    got = f(torch.tensor([[100.0, 1.0], [100.0, -1.0]]), torch.ones(3, 2))
    assert float(got[0]) == 0, f"a channel that is always 100 scores {float(got[0]):.4g}: a bias could do its work"


@fluctuation.holds("two tokens, one channel: the variance is 1, and ‖(3, 4)‖² is 25")
def _(f: Function) -> None:
    got = float(f(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [4.0]])))
    assert math.isclose(got, 25, rel_tol=1e-5), (
        f"it gave {got:.4g}, not 25. The variance divides by the number of tokens, and both factors are squares"
    )


@fluctuation.holds("it is what the outputs lose, in the mean square, if the channel is held at its mean")
def _(f: Function) -> None:
    for tokens, channels, outputs in ((12, 5, 3), (9, 4, 4), (6, 6, 6)):
        inputs, weight = heavy(tokens, channels), normal(outputs, channels, seed=1)
        got = f(inputs, weight)
        for j in range(channels):
            held = inputs.clone()
            held[:, j] = inputs[:, j].sum() / tokens
            want = float(((inputs - held) @ weight.T).square().sum()) / tokens
            assert math.isclose(float(got[j]), want, rel_tol=1e-6), (
                f"{tokens} tokens, {channels} channels, {outputs} outputs: without channel {j}'s fluctuation the "
                f"outputs move by {want:.4g}; its score is {float(got[j]):.4g}"
            )


@fluctuation.holds("single precision is enough, also where the mean is far larger than the fluctuation")
def _(f: Function) -> None:
    inputs = (1000 + 0.1 * normal(200, 1)).float()
    got, want = float(f(inputs, torch.ones(1, 1))), float(inputs.double().var(correction=0))
    assert math.isclose(got, want, rel_tol=0.02), (
        f"inputs of 1000 ± 0.1 in float32: it gave {got:.4g}, not {want:.4g}. The difference of two large squares has "
        "no digits left: take off the mean first"
    )


# ── compensation ──────────────────────────────────────────────────────────────────────────────────────────────────


def _compensation(weight: Tensor, inputs: Tensor, gone: Tensor) -> Tensor:
    return weight[:, gone] @ inputs[:, gone].mean(0)


compensation = exercise("compensation", _compensation)


def _reader(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The weight of a layer, its inputs, and which of these go."""
    return normal(4, 6, seed=seed), heavy(15, 6, seed=seed), torch.tensor([True, False, True, False, False, True])


@compensation.holds("it gives one number for each output")
def _(f: Function) -> None:
    is_tensor(f(*_reader()), (4,), torch.float64)


@compensation.holds("nothing that it is given changes")
def _(f: Function) -> None:
    weight, inputs, gone = _reader()
    untouched(f, weight=weight, inputs=inputs, gone=gone)


@compensation.holds("where nothing goes, nothing has to be made up for")
def _(f: Function) -> None:
    weight, inputs, _ = _reader()
    got = f(weight, inputs, torch.zeros(6, dtype=torch.bool))
    assert not got.any(), f"no channel goes, but the bias is {told(got)}"


@compensation.holds("a channel that always says the same can go without a trace")
def _(f: Function) -> None:
    inputs = torch.tensor([[5.0, 1.0], [5.0, -1.0], [5.0, 2.0]])
    got = f(torch.tensor([[2.0, 1.0], [-1.0, 1.0]]), inputs, torch.tensor([True, False]))
    assert torch.allclose(got, torch.tensor([10.0, -5.0])), (
        f"it is always 5 and read with 2 and −1: the biases are 10 and −5, not {told(got)}"
    )


@compensation.holds("with it the outputs are the same as before, on average over the tokens")
def _(f: Function) -> None:
    for seed in range(5):
        weight, inputs, gone = _reader(seed)
        lost = [
            [sum(float(w * x) for w, x in zip(row[gone], token[gone], strict=True)) for row in weight]
            for token in inputs
        ]
        for o, got in enumerate(f(weight, inputs, gone).tolist()):
            want = math.fsum(token[o] for token in lost) / len(lost)
            assert math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9), (
                f"output {o} loses {want:.4g} on average, your bias gives it {got:.4g}"
            )


# ── block_influence ───────────────────────────────────────────────────────────────────────────────────────────────


def _block_influence(before: Tensor, after: Tensor) -> float:
    return 1 - float(F.cosine_similarity(before, after, dim=1).mean())


block_influence = exercise("block_influence", _block_influence)


@block_influence.holds("it gives one plain number")
def _(f: Function) -> None:
    got = f(normal(6, 4), normal(6, 4, seed=1))
    assert isinstance(got, float), f"it gave {type(got).__name__}, not a float"


@block_influence.holds("nothing that it is given changes")
def _(f: Function) -> None:
    untouched(f, before=normal(6, 4), after=normal(6, 4, seed=1))


@block_influence.holds("a block that changes nothing has influence 0, one that turns everything round has 2")
def _(f: Function) -> None:
    x = normal(6, 4)
    assert abs(f(x, x)) < 1e-6, f"nothing changed, but its influence is {f(x, x):.4g}"
    assert abs(f(x, -x) - 2) < 1e-6, f"every state was turned round: 1 − (−1) is 2, not {f(x, -x):.4g}"


@block_influence.holds("directions count, not lengths")
def _(f: Function) -> None:
    x, y = normal(6, 4), normal(6, 4, seed=1)
    one, other = f(x, y), f(x, 3 * y)
    assert math.isclose(one, other, rel_tol=1e-6), f"with states three times as long it is {other:.4g}, not {one:.4g}"


@block_influence.holds("a quiet token counts as much as a loud one")
def _(f: Function) -> None:
    before = torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    got = f(before, torch.tensor([[100.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    assert math.isclose(got, 2 / 3, rel_tol=1e-5), (
        "the loud token stays (cosine 1), two quiet ones turn by a right angle (cosine 0): 1 − ⅓ is 0.667, not "
        f"{got:.4g}"
    )


@block_influence.holds("it is 1 minus the mean over tokens of the cosine of each")
def _(f: Function) -> None:
    for tokens, width in ((7, 3), (3, 7), (5, 5)):
        before = normal(tokens, width)
        after = before + 0.8 * normal(tokens, width, seed=1)
        cosines = [
            math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
            for a, b in zip(before.tolist(), after.tolist(), strict=True)
        ]
        got, want = f(before, after), 1 - math.fsum(cosines) / tokens
        assert math.isclose(got, want, rel_tol=1e-6), f"{tokens} tokens of width {width}: {got:.4g}, not {want:.4g}"
