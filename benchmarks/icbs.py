"""iCBS from the densities of other allocations, on a ResNet-20 for CIFAR-10.

    python benchmarks/icbs.py --data FOLDER [--seeds 3] [--steps 30]

FOLDER is that of `rate_distortion.py --data`. Each row begins with the magnitude mask of an allocation and exchanges
weights in so many blocks, without any training (some 40 minutes in all). Rows are stored as soon as they are there (in
the library's cache folder); an interrupted run goes on. The table goes to results/icbs.md.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from network_rate_distortion import ALLOCATIONS, RECIPE, Rows, chosen_images, load, logits
from torch import Tensor, nn

from pruninglab import Masks, prune, recipe
from pruninglab.slimmed import recalibrate
from pruninglab.tasks import Task
from pruninglab.tasks.models import ResNet

RESULTS = Path(__file__).parent / "results" / "icbs.md"
SPARSITIES = (0.5, 0.7, 0.8)
FROM = ("uniform", "global", "RD")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the network and the images")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the batches, and of which layer's turn it is")
    parser.add_argument("--steps", type=int, default=30, help="blocks of a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense, data = load(options.data)
    task = Task("cifar10-sample", lambda: data, partial(ResNet, 3, 3, (16, 32, 64)), RECIPE)
    rows, table = Rows("icbs.jsonl"), []
    for sparsity in SPARSITIES:
        for name in FROM:
            start = cache(partial(pruned, dense, chosen_images(data["train"][0]), name, sparsity))
            first = rows.get(f"{name} at {sparsity}", partial(begun, task, start))
            found = []
            for seed in range(options.seeds):
                make = partial(cell, dense, task, start, sparsity, options.steps, seed)
                found.append(rows.get(f"{name} at {sparsity}, {options.steps} steps, seed {seed}", make))
            table.append((sparsity, name, first, found))
        write(table, options.seeds, options.steps)


def write(table: list[tuple[float, str, dict[str, Any], list[dict[str, Any]]]], seeds: int, steps: int) -> None:
    lines = [
        f"# iCBS on ResNet-20 for CIFAR-10 (torch {torch.__version__}, one thread, {date.today()})",
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
    RESULTS.write_text("\n".join(lines) + "\n")


def spread(fractions: list[float]) -> str:
    std = f" ± {100 * statistics.stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{100 * statistics.mean(fractions):.1f}{std}"


if __name__ == "__main__":
    main()
