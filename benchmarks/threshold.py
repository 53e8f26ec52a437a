"""Exact global magnitude pruning and 2:4 masks, side by side with what torch ships.

    python benchmarks/threshold.py [--rounds 3] [--layers 6]

Both sides run in turn, in this process, on one thread; CPU seconds and the rise of the peak resident memory are
measured. Memory is measured in a fresh process for each side, because a process does not give memory back reliably.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings

import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

from pruninglab import prune

WIDTH = 4096


def layers(count: int, width: int = WIDTH) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))


def torch_global(model: nn.Sequential) -> None:
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in model], pruning_method=torch_prune.L1Unstructured, amount=0.9
    )


def our_global(model: nn.Sequential) -> None:
    prune(model, sparsity=0.9)


def torch_two_four(model: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier

        sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
        sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
        sparsifier.step()


def our_two_four(model: nn.Sequential) -> None:
    prune(model, unit="2:4")


SIDES = {"torch_global": torch_global, "our_global": our_global}
SIDES |= {"torch_two_four": torch_two_four, "our_two_four": our_two_four}


def seconds(side: str, count: int) -> float:
    model = layers(count)
    start = time.process_time()
    SIDES[side](model)
    return time.process_time() - start


def memory(side: str, count: int) -> float:
    """Rise of the peak resident memory as a multiple of the model's bytes, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", side, "--layers", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(side: str, count: int) -> None:
    SIDES[side](layers(1, width=64))  # what is loaded once, on first use, does not count
    model = layers(count)
    size = sum(p.numel() * 4 for p in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SIDES[side](model)
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(rise * 1024 / size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--memory-of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        measure_memory(options.memory_of, options.layers)
        return
    for title, ours, theirs, count in (
        (f"global magnitude, {options.layers} × {WIDTH}²", "our_global", "torch_global", options.layers),
        (f"2:4 mask of {WIDTH}²", "our_two_four", "torch_two_four", 1),
    ):
        pairs = [(seconds(ours, count), seconds(theirs, count)) for _ in range(options.rounds)]
        ratios = sorted(b / a for a, b in pairs)
        print(
            f"{title}: ours {statistics.median(a for a, _ in pairs):.3f} CPU s, "
            f"torch {statistics.median(b for _, b in pairs):.3f}; {statistics.median(ratios):.1f} times faster "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f} over {options.rounds} rounds, 1 thread)"
        )
        print(f"  peak memory over the model's own bytes: ours {memory(ours, count):.2f}, {memory(theirs, count):.2f}")


if __name__ == "__main__":
    main()
