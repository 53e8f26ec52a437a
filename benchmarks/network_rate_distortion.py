"""The network part of `rate_distortion.py`: allocations on a ResNet-20 for CIFAR-10, before and after fine-tuning.

Every row is stored as soon as it is there (in the cache folder of the library), so that an interrupted run goes on.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruninglab import Masks, prune
from pruninglab.allocation.rate_distortion import rate_distortion
from pruninglab.distortion import Probe
from pruninglab.files import cache_dir, load_tensors
from pruninglab.slimmed import recalibrate
from pruninglab.tasks.models import ResNet
from pruninglab.tasks.training import Training, train

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
CALIBRATION = 128  # images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = Training(steps=63, batch=64, lr=0.01, weight_decay=5e-4, augment=True)  # one epoch of 4,000 images
FORGETFUL = ", norms of the batch"
ALLOCATIONS: dict[str, Any] = {
    "uniform": "uniform",
    "ERK": "erk",
    "global": "global",
    "LAMP": "lamp",
    "RD by Gauss–Newton": partial(rate_distortion, method="gauss_newton"),
    "RD": partial(rate_distortion, levels=26),
    "RD in 3 rounds": partial(rate_distortion, levels=26, rounds=3),
    f"RD{FORGETFUL}": partial(rate_distortion, levels=26),
    f"RD in 3 rounds{FORGETFUL}": partial(rate_distortion, levels=26, rounds=3),
}


def forgetful(model: nn.Module) -> nn.Module:
    """A copy whose batch norms have no running statistics, so that they use those of the batch also in evaluation."""
    other = copy.deepcopy(model)
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = norm.running_var = None
    return other


def load(folder: Path) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """The network, and its images by split."""
    files = folder / "resnet20_cifar10.safetensors", folder / "cifar10_sample.npz"
    for file in files:
        if not file.is_file():
            raise SystemExit(f"{file} is missing: --data is the folder of {' and '.join(f.name for f in files)}")
    model = ResNet(3, 3, (16, 32, 64))
    model.load_state_dict(load_tensors(files[0])[0])
    arrays = np.load(files[1])
    data = {}
    for split in ("train", "test"):
        images = torch.from_numpy(arrays[f"{split}_images"]).float() / 255
        images = ((images - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, 1)  # channels stay last in memory
        data[split] = images, torch.from_numpy(arrays[f"{split}_labels"]).long()
    return model.eval().to(memory_format=torch.channels_last), data


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(250)])


def macs_kept(masks: Masks, positions: Mapping[str, int]) -> float:
    left = sum(int(mask.sum()) * positions[name] for name, mask in masks.items())
    return left / sum(mask.numel() * positions[name] for name, mask in masks.items())


def cell(
    dense: nn.Module,
    data: dict[str, tuple[Tensor, Tensor]],
    calibration: Tensor,
    name: str,
    sparsity: float,
    rounds: int,
) -> dict[str, Any]:
    """One allocation at one sparsity: pruned, measured, and fine-tuned as often as asked, each time anew."""
    x, y = data["test"]
    model = copy.deepcopy(dense)
    seen = forgetful(dense) if name.endswith(FORGETFUL) else model
    start = time.process_time()
    masks = prune(seen, sparsity=sparsity, allocation=ALLOCATIONS[name], data=calibration)
    seconds = time.process_time() - start
    masks.apply(model)
    before, whole = logits(model, x), logits(dense, x)
    after = []
    for seed in range(rounds):
        tuned = copy.deepcopy(model)
        masks.apply(tuned)
        train(tuned, data["train"], RECIPE, seed=seed, masks=masks)
        after.append(float((logits(tuned, x).argmax(1) == y).float().mean()))
    return {
        "before": float((before.argmax(1) == y).float().mean()),
        "after": after,
        "recalibrated": float((logits(recalibrate(model, data["train"][0]), x).argmax(1) == y).float().mean()),
        "distortion": float((before - whole).square().mean()),
        "calibration": float((logits(model, calibration) - logits(dense, calibration)).square().mean()),
        "macs": macs_kept(masks, Probe(dense, calibration).positions(masks)),
        "seconds": seconds,
    }


class Rows:
    """Rows by name, each kept in the library's cache folder as soon as it is there (delete lines to measure anew)."""

    def __init__(self, file: str) -> None:
        self.file = cache_dir() / file
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known: dict[str, dict[str, Any]] = {(row := json.loads(line))["cell"]: row for line in lines}
        print(f"rows are kept in {self.file}")

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of this name, made if need be."""
        if key not in self.known:
            self.known[key] = {"cell": key} | make()
            with self.file.open("a") as out:
                out.write(json.dumps(self.known[key]) + "\n")
        print(self.known[key], flush=True)
        return self.known[key]


def chosen_images(images: Tensor) -> Tensor:
    """Those that curves and rounds see."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION]]


def network(folder: Path, rounds: int, write: Callable[[str], None]) -> None:
    """Measure what is not in the file of rows yet, and write the table."""
    dense, data = load(folder)
    calibration, rows = chosen_images(data["train"][0]), Rows("rate_distortion.jsonl")
    x, y = data["test"]
    accuracy, done = float((logits(dense, x).argmax(1) == y).float().mean()), {}
    for sparsity in SPARSITIES:
        for name in ALLOCATIONS:
            make = partial(cell, dense, data, calibration, name, sparsity, rounds)
            done[name, sparsity] = rows.get(f"{name} at {sparsity}, {rounds} times", make)
        write(table(done, accuracy, rounds, len(y)))


def table(found: dict[tuple[str, float], dict[str, Any]], dense: float, rounds: int, images: int) -> str:
    error = 100 * (dense * (1 - dense) / images) ** 0.5
    lines = [
        f"## ResNet-20 for CIFAR-10 (torch {torch.__version__}, one thread, {date.today()})",
        "",
        f"Unpruned: {100 * dense:.1f} % of {images:,} test images, a number that leaves ± {error:.1f} points open. "
        f"Curves and rounds see {CALIBRATION} training images. Fine-tuning: one epoch of 4,000 images ({RECIPE.steps} "
        f"steps of SGD from a rate of {RECIPE.lr} to 0 along a cosine, masks held), {rounds} time(s) with other seeds. "
        "*Norms of the batch*: curves are measured while batch norms use the statistics of the calibration images, not "
        "those of the unpruned network. *Norms anew*: accuracy after the statistics of batch norms were measured on "
        "the 4,000 images, and nothing else changed. Distortion is true, and on the test images. Seconds are the "
        "processor's, for pruning alone. The best of each column at a sparsity is bold.",
    ]
    columns = ("before, %", "norms anew, %", "after, %", "distortion", "MACs kept", "seconds")
    for sparsity in sorted({sparsity for _, sparsity in found}):
        here = {name: found[name, sparsity] for name in ALLOCATIONS}
        best = {
            "before": max(row["before"] for row in here.values()),
            "recalibrated": max(row["recalibrated"] for row in here.values()),
            "after": max(statistics.mean(row["after"]) for row in here.values()),
            "distortion": min(row["distortion"] for row in here.values()),
        }
        lines += ["", f"| {sparsity:.0%} sparse | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
        for name, row in here.items():
            mean = statistics.mean(row["after"])
            spread = f" ± {100 * statistics.stdev(row['after']):.1f}" if rounds > 1 else ""
            cells = [
                _bold(f"{100 * row['before']:.1f}", row["before"] == best["before"]),
                _bold(f"{100 * row['recalibrated']:.1f}", row["recalibrated"] == best["recalibrated"]),
                _bold(f"{100 * mean:.1f}{spread}", mean == best["after"]),
                _bold(f"{row['distortion']:.2f}", row["distortion"] == best["distortion"]),
                f"{row['macs']:.2f}",
                f"{row['seconds']:.0f}",
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text
