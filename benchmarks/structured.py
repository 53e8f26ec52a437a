"""Cutting out channels, side by side with Torch-Pruning: how long it takes, what is removed, how fast the result is.

    pip install --target /some/folder --no-deps torch-pruning
    PYTHONPATH=/some/folder python benchmarks/structured.py [--rounds 3]              # time and fractions: minutes
    PYTHONPATH=/some/folder python benchmarks/structured.py --latency [--threads 1]   # the networks that come out

The peer is for this benchmark only; without it, its columns are empty. Both sides run in turn, in this process. The
tables go to results/structured.md; those of a part that is not run stay as they are.
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision
from pages import replace_sections
from torch import Tensor, nn

from pruninglab import prune
from pruninglab.graph import trace
from pruninglab.measure import flops, race
from pruninglab.surgery import slim
from pruninglab.units import structure

try:
    import torch_pruning as peer
except ImportError:
    peer = None

RESULTS = Path(__file__).parent / "results" / "structured.md"
TIMED = ("resnet50", "vit_b_16", "vgg16_bn", "densenet201")
COUNTED = ("resnet18", "vgg16_bn", "mobilenet_v2")
ASKED = (0.3, 0.5, 0.7, 0.9)
EQUAL = 0.37  # of the channels, where latencies are compared
MULTIPLES = (1, 8, 16)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def image(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 224, 224)


def ours(
    model: nn.Module, x: Tensor, ratio: float = 0.5, allocation: str = "uniform", multiple_of: int = 16
) -> nn.Module:
    return ours_within(model, x, allocation, multiple_of, sparsity=ratio)


def ours_within(model: nn.Module, x: Tensor, allocation: str, multiple_of: int, **budget: float) -> nn.Module:
    """What we make of a model within any budget that `prune` takes."""
    unit = structure("channel", multiple_of=multiple_of)
    graph = trace(model, x)  # once for both
    masks = prune(model, unit=unit, allocation=allocation, example_inputs=graph, **budget)
    return slim(model, masks, graph)


def theirs(
    model: nn.Module, x: Tensor, ratio: float = 0.5, *, compare_all: bool = False, round_to: int | None = None
) -> nn.Module:
    """What the peer makes of a model (in place). Compared globally, scores are taken as they are, as ours are."""
    importance = peer.importance.MagnitudeImportance(p=2, **({"normalizer": None} if compare_all else {}))
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 1000]
    peer.pruner.BasePruner(
        model,
        x,
        importance,
        pruning_ratio=ratio,
        ignored_layers=head,
        global_pruning=compare_all,
        round_to=round_to,
    ).step()
    return model


# ── seconds of grouping and cutting ───────────────────────────────────────────────────────────────────────────────


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def forward(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        model(x)
        return seconds(lambda: model(x))


def timed(names: list[str], rounds: int) -> list[str]:
    """CPU seconds from a network to a smaller one: we, the peer and one forward pass take turns."""
    rows = [
        f"## CPU seconds of grouping and cutting half of the channels ({stamp(1)}, {rounds} rounds)",
        "",
        "Median and quickest round, with images of 224 × 224, batch 1. Ours is `prune` by magnitude and `slim`; the "
        "peer's is `BasePruner(…).step()` with ℓ2 magnitude. Both go from a network to a smaller one, and prune every "
        "layer by the same fraction. Ratios are medians of the rounds' ratios.",
        "",
        "| network | ours, s | of which prune, slim | peer, s | ours/peer | forward pass, s | ours/forward |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    x = image()
    ours(build("resnet18"), x)  # what is loaded on first use does not count
    if peer:
        theirs(build("resnet18"), x)
    for name in names:
        runs = [one_round(name, x, first=turn % 2) for turn in range(rounds)]
        cutting, choosing, theirs_s, passes = zip(*runs, strict=True)
        total = [a + b for a, b in zip(choosing, cutting, strict=True)]
        parts = f"{statistics.median(choosing):.2f}, {statistics.median(cutting):.2f}"
        them, ratio = "–", "–"
        if peer:
            them, ratio = both(theirs_s), f"{paired(total, theirs_s):.2f}"
        rows.append(
            f"| {name} | {both(total)} | {parts} | {them} | {ratio} | {both(passes)} | {paired(total, passes):.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def one_round(name: str, x: Tensor, first: int) -> tuple[float, float, float, float]:
    """CPU seconds of our slim, our prune, the peer, and a forward pass; a peer that is missing takes NaN."""
    taken = {"peer": float("nan")}

    def we() -> None:
        model = build(name)
        start = time.process_time()
        graph = trace(model, x)  # once for both; counted with pruning
        masks = prune(model, unit="channel", sparsity=0.5, allocation="uniform", example_inputs=graph)
        middle = time.process_time()
        slim(model, masks, graph)
        taken["slim"], taken["prune"] = time.process_time() - middle, middle - start

    def they() -> None:
        if peer:
            model = build(name)
            taken["peer"] = seconds(lambda: theirs(model, x))

    for side in (they, we) if first else (we, they):
        side()
    return taken["slim"], taken["prune"], taken["peer"], forward(build(name), x)


def both(values: tuple[float, ...] | list[float]) -> str:
    return f"{statistics.median(values):.2f}, {min(values):.2f}"


def paired(above: list[float] | tuple[float, ...], below: tuple[float, ...]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


# ── asked and achieved ────────────────────────────────────────────────────────────────────────────────────────────


def channels(model: nn.Module, x: Tensor) -> int:
    """How many channels a network has that could be removed, counted anew: a yardstick for both sides."""
    return sum(family.channels for family in trace(model, x).families)


def counted(names: list[str]) -> list[str]:
    """Which fraction of the channels is gone, where all layers compete with their scores as they are."""
    rows = [
        f"## Asked and achieved ({stamp(1)})",
        "",
        "All channels of a network compete, with no normalising: ℓ2 magnitude for the peer, the sum of magnitudes for "
        "us. Achieved is the fraction of channels that the smaller network no longer has, counted on both in the same "
        "way, by tracing it again.",
        "",
        "| network | channels | asked | ours | ours, multiple_of=1 | peer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    x = image()
    for name in names:
        model = build(name)
        total = channels(model, x)

        def achieved(small: nn.Module, total: int = total) -> str:
            return f"{1 - channels(small, x) / total:.4f}"

        for ratio in ASKED:
            we = [
                achieved(ours(copy.deepcopy(model), x, ratio, "global", multiple_of=multiple)) for multiple in (16, 1)
            ]
            they = achieved(theirs(copy.deepcopy(model), x, ratio, compare_all=True)) if peer else "–"
            rows.append(f"| {name} | {total} | {ratio} | {we[0]} | {we[1]} | {they} |")
            print(rows[-1], flush=True)
    return rows


# ── how fast the result is ────────────────────────────────────────────────────────────────────────────────────────


def latency(name: str, threads: int, rounds: int, repeats: int) -> list[str]:
    """Times faster than the dense network, at an equal fraction of channels, by what widths are rounded to."""
    rows = [
        f"## Latency won on {name} at {EQUAL:g} of the channels of every layer ({stamp(threads)}, {rounds} rounds)",
        "",
        "All networks take turns. Times faster: the dense network's time over the smaller one's in the same round (the "
        "quickest lower quartile of three turns), median and extremes of the rounds. FLOPs and parameters: likewise. "
        "Removed: of the channels. The peer's rounding removes more than was asked, ours does not; so the last row is "
        "ours at as many FLOPs as the peer's multiples of 16.",
        "",
        "| side | multiples of | removed | FLOPs | parameters | times faster, batch 1 | times faster, batch 8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    x, dense = image(), build(name)
    total, work = channels(dense, x), flops(dense, x)
    small = {f"ours | {m}": ours(copy.deepcopy(dense), x, EQUAL, multiple_of=m) for m in MULTIPLES}
    if peer:
        for m in MULTIPLES:
            small[f"peer | {m}"] = theirs(copy.deepcopy(dense), x, EQUAL, round_to=m if m > 1 else None)
        budget = flops(small["peer | 16"], x)
        small["ours, `flops=` the peer's | 16"] = ours_within(copy.deepcopy(dense), x, "uniform", 16, flops=budget)
    ways = {"dense": dense} | {side: model.eval() for side, model in small.items()}
    tables = [race(ways, image(batch), rounds=rounds, repeats=repeats, threads=threads) for batch in (1, 8)]
    for side, model in small.items():
        won = [table["dense"] / table[side] for table in tables]
        cells = [f"{w.median():.2f} ({w.min():.2f} to {w.max():.2f})" for w in won]
        rows.append(
            f"| {side} | {1 - channels(model, x) / total:.3f} | {work / flops(model, x):.2f} | "
            f"{count(dense) / count(model):.2f} | {cells[0]} | {cells[1]} |"
        )
        print(rows[-1], flush=True)
    return rows


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def stamp(threads: int) -> str:
    them = f"torch-pruning {version('torch-pruning')}" if peer else "without the peer"
    return f"torch {torch.__version__}, {them}, {threads} thread{'s' * (threads > 1)}, {date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", action="store_true", help="only the speed of the networks that come out")
    parser.add_argument("--threads", type=int, default=1, help="of --latency; all else runs on one thread")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="calls in one turn of --latency")
    parser.add_argument("--models", nargs="+", help="other networks than those of the issue; nothing is saved then")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if peer is None:
        print("Torch-Pruning is not there, so its columns stay empty: see how to install it in this file's first lines")
    if options.latency:
        networks = options.models or ["resnet50"]
        parts = [latency(name, options.threads, options.rounds, options.repeats) for name in networks]
    else:
        parts = [timed(options.models or list(TIMED), options.rounds), counted(options.models or list(COUNTED))]
    if not options.models:
        sections = ["\n".join(part) for part in parts]
        replace_sections(RESULTS, "# Cutting out channels, side by side with Torch-Pruning", sections)


if __name__ == "__main__":
    main()
