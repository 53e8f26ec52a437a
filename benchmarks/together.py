"""Training several seeds as one stack, beside training one of them alone.

    python benchmarks/together.py [--threads 2] [--rounds 5] [--steps 200]

All take turns in this process: one network alone, S of them together. The table goes to results/together.md: the time
of S together as a multiple of one alone, the median of the rounds' ratios with their extremes.
"""

import argparse
import statistics
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch

from pruninglab import task
from pruninglab.tasks import together

RESULTS = Path(__file__).parent / "results" / "together.md"
TASKS = ("digits-mlp", "hard-digits-mlp", "digits-cnn", "digits-resnet")
SIZES = (2, 5, 10)


def trained(name: str, steps: int, seed: int) -> None:
    home = task(name)
    home.train(home.model(seed), seed=seed, stop=steps)


def seconds(name: str, steps: int, networks: int) -> float:
    start = time.perf_counter()
    together([partial(trained, name, steps, seed) for seed in range(networks)])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stamp = f"torch {torch.__version__}, {options.threads} thread(s), {date.today()}, {options.rounds} rounds"
    rows = [
        f"# Training S networks together, as a multiple of training one alone ({stamp})",
        "",
        "| task | one alone, ms a step | " + " | ".join(f"S = {size}" for size in SIZES) + " |",
        "| --- | --- |" + " --- |" * len(SIZES),
    ]
    for name in TASKS:
        seconds(name, 5, max(SIZES))  # what is loaded on first use does not count
        rounds = []
        for _ in range(options.rounds):
            alone = [seconds(name, options.steps, 1)]
            beside = [seconds(name, options.steps, size) for size in SIZES]
            alone.append(seconds(name, options.steps, 1))
            rounds.append((statistics.mean(alone), beside))
        cells = []
        for i in range(len(SIZES)):
            ratios = sorted(beside[i] / alone for alone, beside in rounds)
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        one = 1000 * statistics.median(alone for alone, _ in rounds) / options.steps
        rows.append(f"| {name} | {one:.2f} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
