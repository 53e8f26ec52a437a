"""One-shot pruning of language models: speed beside the loops as published, and quality on WikiText-2 text.

    python benchmarks/llm.py [--threads 1] [--rounds 5]      # speed: some ten minutes
    python benchmarks/llm.py --quality --data FOLDER         # quality: training, then some 50 cells of seconds each

FOLDER holds `wikitext2_valid.txt`, to train and to calibrate with, and `wikitext2_test.txt`. `--scale 0.25` tries both
at a smaller size and writes nothing. The tables go to results/llm.md; those of a part that is not run stay as they are.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llm_published import published_hessian, published_sparsegpt, published_wanda, published_wanda_statistic
from llm_quality import quality
from pages import replace_sections
from torch import Tensor, nn

from pruninglab import units
from pruninglab.criteria import wanda
from pruninglab.language import factor, select, sparsegpt
from pruninglab.statistics import hessian, input_norm

RESULTS = Path(__file__).parent / "results" / "llm.md"
SHAPES = ((1024, 1024), (5632, 2048), (2048, 5632))  # outputs × inputs
TOGETHER = (("q, k, v", 3, (1024, 1024)), ("q, k, v", 3, (2048, 2048)), ("gate, up", 2, (5632, 2048)))
SEQUENCES, LENGTH = 8, 512
PATTERN = units.nm(2, 4)
TARGETS = {"SparseGPT, 50 %": 3, "SparseGPT, 2:4": 2, "Wanda, 50 %": 8, "together": 5}
WORST_ERROR = 1.001  # times that of the published loop


def layer(outputs: int, inputs: int, copies: int = 1) -> tuple[list[Tensor], Tensor]:
    """Random weights, and inputs (sequences, tokens, inputs) that are correlated and of very different sizes."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    weights = [torch.randn(outputs, inputs, generator=generator) / inputs**0.5 for _ in range(copies)]
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(SEQUENCES, LENGTH, inputs, generator=generator) * torch.logspace(-1, 1, inputs)
    return weights, x @ mix


def beside(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float, Any, Any]:
    """Seconds of the quickest of so many rounds, in turn; and what both gave. One thread: of processor time."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best, found = [float("inf")] * 2, [None, None]
    for turn in range(rounds):
        for side, run in list(enumerate((theirs, ours)))[:: -1 if turn % 2 else 1]:
            start = clock()
            found[side] = run()
            best[side] = min(best[side], clock() - start)
    return *best, *found


def error(weight: Tensor, old: Tensor, h: Tensor) -> float:
    """tr(Δ H Δᵀ) / tr(W H Wᵀ)."""
    delta, old, h = (weight - old).double(), old.double(), h.double()
    return float(((delta @ h) * delta).sum() / ((old @ h) * old).sum())


def speed(rounds: int, scale: float) -> str:
    rows, ratios, errors = [], dict[str, list[float]](), list[float]()

    def row(name: str, what: str, theirs: float, ours: float, *rest: str) -> None:
        ratios.setdefault(what, []).append(theirs / ours)
        numbers = [f"{1000 * theirs:,.1f}", f"{1000 * ours:,.1f}", f"**{theirs / ours:.1f}**"]
        rows.append(f"| {' | '.join([name, what, *numbers, *rest, *[''] * (3 - len(rest))])} |")
        print(rows[-1], flush=True)

    for shape in SHAPES:
        outputs, inputs = (round(scale * size) for size in shape)
        name = f"{outputs:,} × {inputs:,}"
        (weight,), x = layer(outputs, inputs)
        module = nn.Linear(inputs, outputs, bias=False)
        theirs, ours, other, h = beside(lambda: published_hessian(x.split(1)), lambda: hessian(x[None]), rounds)  # noqa: B023
        row(name, "Hessian", theirs, ours)
        for what, unit in (("50 %", None), ("2:4", PATTERN)):
            *times, (left, kept), (fresh, keep) = beside(
                lambda: published_sparsegpt(weight, other, unit and (2, 4)),  # noqa: B023
                lambda: sparsegpt(weight, factor(h), 0.5, unit),  # noqa: B023
                rounds,
            )
            was, is_ = error(left, weight, h), error(fresh, weight, h)
            errors.append(is_ / was)
            same = float((kept == keep).double().mean())
            row(name, f"SparseGPT, {what}", *times, f"{same:.4%}", f"{was:.5f}", f"{is_ / was:.5f}")
        *statistic, scale_, norm = beside(
            lambda: published_wanda_statistic(x.split(1)),  # noqa: B023
            lambda: input_norm(x[None], module).sqrt().float(),  # noqa: B023
            rounds,
        )
        row(name, "Wanda's statistic", *statistic)
        for what, unit in (("50 %", None), ("2:4", PATTERN)):
            *times, kept, keep = beside(
                lambda: published_wanda(weight, scale_, unit and (2, 4)),  # noqa: B023
                lambda: select(wanda(weight, norm), 0.5, unit=unit),  # noqa: B023
                rounds,
            )
            both = [a + b for a, b in zip(statistic, times, strict=True)]
            row(name, f"Wanda, {what}", *both, f"{float((kept == keep).double().mean()):.4%}")
    shared = together(rounds, scale, ratios)
    return "\n".join(
        [
            f"## Speed ({setting()})",
            "",
            f"The loops as published (written anew, from their description) and this library, in this process, in "
            f"turn, on one random layer and {SEQUENCES * LENGTH:,} tokens: milliseconds of the quickest of {rounds} "
            f"rounds. SparseGPT is its factor and the loop, without the Hessian; Wanda is its statistic and the mask. "
            "The published loops take a sequence at a time; here a batch of them comes at once. *Same*: weights on "
            "which both masks agree (the published threshold takes one weight more a block). *Error*: "
            "tr(Δ H Δᵀ) / tr(W H Wᵀ) of the published loop, and ours as a multiple of it.",
            "",
            "| outputs × inputs | what | published, ms | here, ms | times as fast | same | error | here |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Layers with the same inputs: published, each has a Hessian and a factor of its own; here they share them.",
            "",
            "| layers | published, ms | here, ms | times as fast | with the Hessians, published, ms | here, ms | "
            "times as fast |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *shared,
            "",
            *verdicts(ratios, errors),
        ]
    )


def together(rounds: int, scale: float, ratios: dict[str, list[float]]) -> list[str]:
    rows = []
    for name, copies, shape in TOGETHER:
        outputs, inputs = (round(scale * size) for size in shape)
        weights, x = layer(outputs, inputs, copies)

        def theirs(h: Tensor | None, weights: Sequence[Tensor] = weights, x: Tensor = x) -> None:
            for weight in weights:
                published_sparsegpt(weight, published_hessian(x.split(1)) if h is None else h)

        def ours(h: Tensor | None, weights: Sequence[Tensor] = weights, x: Tensor = x) -> None:
            m = factor(hessian(x[None]) if h is None else h)
            for weight in weights:
                sparsegpt(weight, m)

        h = hessian(x[None])
        cells = [f"{name}, {outputs:,} × {inputs:,}"]
        for given in (h, None):
            old, new, *_ = beside(lambda: theirs(given), lambda: ours(given), max(2, rounds // 2))  # noqa: B023
            cells += [f"{1000 * old:,.1f}", f"{1000 * new:,.1f}", f"**{old / new:.1f}**"]
            if given is not None:
                ratios.setdefault("together", []).append(old / new)
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def verdicts(ratios: dict[str, list[float]], errors: list[float]) -> list[str]:
    lines = ["| aim | least of all shapes | |", "| --- | --- | --- |"]
    for what, target in TARGETS.items():
        name = "SparseGPT, 50 %, layers with the same inputs" if what == "together" else what
        least = min(ratios[what])
        lines.append(f"| {name}: at least {target} times as fast | {least:.1f} | {_said(least >= target)} |")
    worst = max(errors)
    return [*lines, f"| error at most {WORST_ERROR} of the published | {worst:.5f} | {_said(worst <= WORST_ERROR)} |"]


def _said(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def setting() -> str:
    threads = torch.get_num_threads()
    kind = "one thread, processor time" if threads == 1 else f"{threads} threads"
    return f"torch {torch.__version__}, {kind}, {date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="of the layers, or of the training")
    parser.add_argument("--quality", action="store_true", help="measure perplexity instead of time")
    parser.add_argument("--data", type=Path, help="folder of the text (see above)")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration text")
    parser.add_argument("--windows", type=int, default=800, help="of 128 bytes of test text")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quality and options.data is None:
        parser.error("--quality needs --data FOLDER, with wikitext2_valid.txt and wikitext2_test.txt in it")
    if options.quality:
        steps = max(1, round(options.steps * options.scale))
        section = quality(options.data, steps, options.seeds, options.windows, setting())
    else:
        section = speed(options.rounds, options.scale)
    if options.scale == 1:
        replace_sections(RESULTS, "# One-shot pruning of language models", [section])
    print(section)


if __name__ == "__main__":
    main()
