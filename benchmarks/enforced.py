"""What `masks.enforced(optimizer)` adds to a training step: dense and masked steps side by side.

    python benchmarks/enforced.py [--rounds 15] [--steps 20]

Two copies of a model are trained in alternating rounds, in this process, on one thread; CPU seconds are counted. The
table goes to results/enforced.md.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pruninglab import prune

MEMORY = (
    "The cost is that of reading each weight and its mask and writing the weight once more, so it depends on how fast "
    "the machine's memory is beside its arithmetic; a larger batch makes it a smaller part of the step."
)
RESULTS = Path(__file__).parent / "results" / "enforced.md"


def mlp(batch: int) -> tuple[nn.Module, torch.Tensor]:
    hidden = [part for _ in range(3) for part in (nn.ReLU(), nn.Linear(1024, 1024))]
    return nn.Sequential(nn.Linear(1024, 1024), *hidden), torch.randn(batch, 1024)


def resnet18(batch: int) -> tuple[nn.Module, torch.Tensor]:
    return torchvision.models.resnet18(num_classes=10), torch.randn(batch, 3, 32, 32)


def seconds(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.process_time() - start) / steps


def compare(
    make: Callable[[int], tuple[nn.Module, torch.Tensor]], batch: int, rounds: int, steps: int
) -> tuple[list, list]:
    torch.manual_seed(0)
    dense, x = make(batch)
    y = torch.randint(10, (batch,))
    sparse = copy.deepcopy(dense)
    masks = prune(sparse, sparsity=0.9)
    sides = [(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), x, y) for model in (dense, sparse)]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            with masks.enforced(sides[1][1]) if which else nullcontext():
                taken = seconds(*sides[which], steps)
            if turn:  # the first round warms up
                times[which].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        f"# Keeping zeros in training: torch {torch.__version__}, 1 thread, {options.rounds} rounds of "
        f"{options.steps} steps of SGD with momentum, {date.today()}",
        "",
        "CPU milliseconds a step: best and median round. Overhead: what `enforced` adds to the dense step.",
        "",
        "| model, batch | dense, ms | enforced, ms | overhead, best/best | median of the rounds' overheads |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    for title, make, batch in (
        ("MLP, 4 × 1024², 32", mlp, 32),
        ("MLP, 4 × 1024², 128", mlp, 128),
        ("MLP, 4 × 1024², 256", mlp, 256),
        ("resnet18, 32 × 32 images, 32", resnet18, 32),
    ):
        dense, masked = compare(make, batch, options.rounds, options.steps)
        each = statistics.median(b / a for a, b in zip(dense, masked, strict=True)) - 1
        rows.append(
            f"| {title} | {1e3 * min(dense):.2f}, {1e3 * statistics.median(dense):.2f} | "
            f"{1e3 * min(masked):.2f}, {1e3 * statistics.median(masked):.2f} | "
            f"{100 * (min(masked) / min(dense) - 1):.1f} % | {100 * each:.1f} % |"
        )
        print(rows[-1], flush=True)
    rows += ["", MEMORY]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
