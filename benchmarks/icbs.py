"""iCBS on two networks for digits, and from the densities of other allocations on a ResNet-20 for CIFAR-10.

    python benchmarks/icbs.py [--seeds 5] [--steps 30]                  # digits: some three minutes
    python benchmarks/icbs.py --data FOLDER [--seeds 3] [--steps 30]    # the ResNet: 40 minutes

FOLDER is that of `rate_distortion.py --data`. Each row begins with the magnitude mask of an allocation and exchanges
weights in so many blocks, without any training. Rows of the ResNet are stored as soon as they are there (in the
library's cache folder); an interrupted run goes on. The tables go to results/icbs.md; that of the part which is not run
stays as it is.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from network_rate_distortion import ALLOCATIONS, RECIPE, Rows, chosen_images, load, logits
from pages import replace_sections
from torch import Tensor, nn

from pruninglab import Masks, prune, recipe
from pruninglab.progress import quietly
from pruninglab.slimmed import recalibrate
from pruninglab.tasks import TASKS, Task, Training, data
from pruninglab.tasks.models import ResNet, mlp

RESULTS = Path(__file__).parent / "results" / "icbs.md"
SPARSITIES = (0.5, 0.7, 0.8)
FROM = ("uniform", "global", "RD")
DIGITS = {
    "digits-mlp": TASKS["digits-mlp"],
    "64–256–256–10, Adam": Task(
        "adam-mlp",
        data.digits,
        partial(mlp, 64, 256, 256, 10),
        Training(lr=1e-3, weight_decay=0.0, optimizer="adam"),
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "iCBS": {},
    "bad steps taken back": {"check": True},
    "nothing set aside": {"tabu": 0.0, "fix_pruned": 0.0, "fix_kept": 0.0},
    "diagonal only": {"couplings": False},
}
Start = Callable[[], tuple[nn.Module, Masks]]  # pruned when it is first asked for


def accuracies(model: nn.Module, task: Task) -> tuple[float, float]:
    """On the test images, as it is and after batch norms' statistics were measured anew on the training images."""
    x, y = task.data["test"]
    whole = float((logits(model, x).argmax(1) == y).float().mean())
    anew = recalibrate(copy.deepcopy(model), task.data["train"][0])
    return whole, float((logits(anew, x).argmax(1) == y).float().mean())


def pruned(dense: nn.Module, calibration: Tensor, name: str, sparsity: float) -> tuple[nn.Module, Masks]:
    """What iCBS begins with."""
    model = copy.deepcopy(dense)
    return model, prune(model, sparsity=sparsity, allocation=ALLOCATIONS[name], data=calibration)


def begun(task: Task, start: Start) -> dict[str, Any]:
    return dict(zip(("before", "anew"), accuracies(start()[0], task), strict=True))


def cell(dense: nn.Module, task: Task, start: Start, sparsity: float, steps: int, seed: int) -> dict[str, Any]:
    model, (_, masks) = copy.deepcopy(dense), start()
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    clock = time.process_time()
    after = recipe("icbs")(
        model, task, sparsity=sparsity, seed=seed, steps=steps, allocation=lambda _scores, _keep: counts
    )
    seconds = time.process_time() - clock
    assert {name: int(mask.sum()) for name, mask in after.items()} == counts
    moved = sum(int((mask != masks[name]).sum()) for name, mask in after.items()) // 2
    before, anew = accuracies(model, task)
    return {"before": before, "anew": anew, "moved": moved / after.kept(), "seconds": seconds}


def digits(seeds: int, steps: int) -> str:
    """Every variant on networks of so many seeds, beside magnitude in each layer, where it begins."""
    lines = [
        f"## Digits (torch {torch.__version__}, one thread, {date.today()})",
        "",
        f"Test accuracy in %, mean ± std over {seeds} networks; magnitude with equal densities, and after {steps} "
        "blocks of 512 (`recipe('icbs')`). *Gain*: over magnitude on the same network. Seconds are the processor's. "
        "Where magnitude is nearly as good as the whole network, there is little to win.",
        "",
        "| network | whole | density | variant | magnitude | after | gain, points | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, task), density in product(DIGITS.items(), (0.1, 0.2)):
        dense = [task.trained(seed) for seed in range(seeds)]
        starts = [magnitude(task, model, density) for model in dense]
        for variant, how in VARIANTS.items():
            runs = [exchanged(task, model, density, seed, steps=steps, **how) for seed, model in enumerate(dense)]
            ends, seconds = zip(*runs, strict=True)
            gains = [after - before for after, before in zip(ends, starts, strict=True)]
            row = [name, spread([task.accuracy(model) for model in dense]), str(density), variant]
            row += [spread(starts), spread(ends), spread(gains), f"{statistics.mean(seconds):.1f}"]
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def magnitude(task: Task, dense: nn.Module, density: float) -> float:
    """The accuracy where iCBS begins."""
    model = copy.deepcopy(dense)
    prune(model, sparsity=1 - density, allocation="uniform")
    return task.accuracy(model)


def exchanged(task: Task, dense: nn.Module, density: float, seed: int, **how: Any) -> tuple[float, float]:
    """The accuracy after iCBS, and the processor's seconds."""
    model, start = copy.deepcopy(dense), time.process_time()
    with quietly():
        recipe("icbs")(model, task, sparsity=1 - density, allocation="uniform", seed=seed, **how)
    seconds = time.process_time() - start
    return task.accuracy(model), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the ResNet and its images")
    parser.add_argument("--seeds", type=int, help="networks (5); with --data draws of batches (3)")
    parser.add_argument("--steps", type=int, default=30, help="blocks of a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write = partial(replace_sections, RESULTS, "# iCBS")
    if options.data is None:
        write([digits(options.seeds or 5, options.steps)])
        return
    dense, images = load(options.data)
    task = Task("cifar10-sample", lambda: images, partial(ResNet, 3, 3, (16, 32, 64)), RECIPE)
    rows, table, seeds = Rows("icbs.jsonl"), [], options.seeds or 3
    for sparsity in SPARSITIES:
        for name in FROM:
            start = cache(partial(pruned, dense, chosen_images(images["train"][0]), name, sparsity))
            first = rows.get(f"{name} at {sparsity}", partial(begun, task, start))
            found = []
            for seed in range(seeds):
                make = partial(cell, dense, task, start, sparsity, options.steps, seed)
                found.append(rows.get(f"{name} at {sparsity}, {options.steps} steps, seed {seed}", make))
            table.append((sparsity, name, first, found))
        write([resnet(table, seeds, options.steps)])


def resnet(table: list[tuple[float, str, dict[str, Any], list[dict[str, Any]]]], seeds: int, steps: int) -> str:
    lines = [
        f"## ResNet-20 for CIFAR-10 (torch {torch.__version__}, one thread, {date.today()})",
        "",
        "Magnitude within each layer at the densities of an allocation, before and after weights were exchanged in "
        f"{steps} blocks of 512 (`recipe('icbs')`, its other defaults; batches of 200 of 4,000 training images), mean "
        f"± std over {seeds} draws of batches. Nothing is trained. Accuracy on 2,000 test images, which leaves ± 0.7 "
        "to 1.1 points open; *norms anew*: after the statistics of batch norms were measured on the training images. "
        "Exchanged: of the kept weights. Seconds are the processor's, of iCBS alone.",
        "",
        "| sparsity | densities of | before, % | after, % | norms anew, before, % | after, % | exchanged | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for sparsity, name, first, found in table:
        cells = [f"{100 * first['before']:.1f}", spread([row["before"] for row in found])]
        cells += [f"{100 * first['anew']:.1f}", spread([row["anew"] for row in found])]
        moved, seconds = (statistics.mean(row[key] for row in found) for key in ("moved", "seconds"))
        lines.append(f"| {sparsity} | {name} | " + " | ".join([*cells, f"{moved:.1%}", f"{seconds:.0f}"]) + " |")
    return "\n".join(lines)


def spread(fractions: Sequence[float]) -> str:
    std = f" ± {100 * statistics.stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{100 * statistics.mean(fractions):.1f}{std}"


if __name__ == "__main__":
    main()
