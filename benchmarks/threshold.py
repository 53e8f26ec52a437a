"""Exact global magnitude pruning and 2:4 masks, side by side with what torch ships.

    python benchmarks/threshold.py [--rounds 3] [--layers 6]

Both sides run in turn, in this process, on one thread, and CPU seconds are counted. Memory is measured in a fresh
process for each side, because a process does not give memory back reliably. The table goes to results/threshold.md.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from pathlib import Path

import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

from pruninglab import prune

WIDTH = 4096
RESULTS = Path(__file__).parent / "results" / "threshold.md"


def layers(count: int, dtype: torch.dtype, width: int = WIDTH) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(count)))


def torch_global(model: nn.Sequential) -> None:
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in model], pruning_method=torch_prune.L1Unstructured, amount=0.9
    )


def our_global(model: nn.Sequential) -> None:
    masks = prune(model, sparsity=0.9)
    total = masks.total()
    assert masks.kept() == total - round(0.9 * total), "not the exact count"


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


def seconds(side: str, count: int, dtype: torch.dtype) -> float:
    model = layers(count, dtype)
    start = time.process_time()
    SIDES[side](model)
    return time.process_time() - start


def memory(side: str, count: int, dtype: torch.dtype) -> float:
    """Rise of the peak resident memory as a multiple of the model's bytes, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", side, "--layers", str(count), "--dtype", name(dtype)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(side: str, count: int, dtype: torch.dtype) -> None:
    SIDES[side](layers(1, dtype, width=64))  # what is loaded once, on first use, does not count
    model = layers(count, dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    before = peak(reset=True)
    SIDES[side](model)
    print((peak() - before) / size)


def peak(reset: bool = False) -> int:
    """Peak resident bytes, since the last reset where the system can do that (Linux), else since the start."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):  # no such file or line: macOS, which counts in bytes, and others, in KiB
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--memory-of", choices=SIDES)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        measure_memory(options.memory_of, options.layers, getattr(torch, options.dtype))
        return
    rows = [
        f"# Choosing masks: torch {torch.__version__}, 1 thread, {options.rounds} rounds, {date.today()}",
        "",
        "CPU seconds: best and median round. Memory: rise of the peak over the model's own bytes; a mask, at one byte "
        "a weight, is 0.25 of a float32 model and 0.5 of a 16-bit one.",
        "",
        "| task | ours, s | torch, s | times faster (best/best) | median/median | memory, ours | memory, torch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    for task, count, dtype in (
        ("global", options.layers, torch.float32),
        ("global", options.layers, torch.bfloat16),
        ("global", options.layers, torch.float16),
        ("two_four", 1, torch.float32),
    ):
        sides = f"our_{task}", f"torch_{task}"
        for side in sides:
            SIDES[side](layers(1, dtype, width=64))
        ours, theirs = zip(
            *([seconds(side, count, dtype) for side in sides] for _ in range(options.rounds)), strict=True
        )
        a, b = statistics.median(ours), statistics.median(theirs)
        title = f"{'90 % of' if task == 'global' else '2:4 masks of'} {count} × {WIDTH}² {name(dtype)}"
        rows.append(
            f"| {title} | {min(ours):.2f}, {a:.2f} | {min(theirs):.2f}, {b:.2f} | {min(theirs) / min(ours):.1f} | "
            f"{b / a:.1f} | {memory(sides[0], count, dtype):.2f} | {memory(sides[1], count, dtype):.2f} |"
        )
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
