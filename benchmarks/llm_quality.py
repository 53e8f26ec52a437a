"""The quality part of `llm.py`: perplexity on WikiText-2 text of a small Llama that reads bytes, pruned in one shot.

Every cell is stored as soon as it is there (in the cache folder of the library), so that an interrupted run goes on.
"""

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pruninglab.files import cache_dir, code_version, digest
from pruninglab.tasks import LanguageTask
from pruninglab.tasks import text as reading
from pruninglab.tasks.language import tiny_llama
from pruninglab.tasks.training import Training

FILES = "wikitext2_valid.txt", "wikitext2_test.txt"
Cells = dict[tuple[str, str], list[dict[str, Any]]]
METHODS = ("magnitude", "wanda", "gblm", "sparsegpt")
BUDGETS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "4:8": {"unit": "4:8"},
    "2:4": {"unit": "2:4"},
}
CLAIMS = [  # (better, worse) at a budget; or one method at (better, worse) budgets
    *(((better, budget), (worse, budget)) for budget in ("50 %", "60 %", "70 %", "4:8", "2:4")
      for better, worse in (("wanda", "magnitude"), ("gblm", "wanda"), ("sparsegpt", "wanda"))),
    *(((method, better), (method, worse)) for method in METHODS
      for better, worse in (("50 %", "4:8"), ("4:8", "2:4"), ("50 %", "2:4"))),
]  # fmt: skip


def task_of(folder: Path, steps: int) -> LanguageTask:
    """Train and calibrate on the one file, measure on the other; the recipe is that of tiny-llama."""
    for file in FILES:
        if not (folder / file).is_file():
            raise SystemExit(f"{folder / file} is missing: --data is the folder of {' and '.join(FILES)}")
    known, test = ((folder / file).read_text(encoding="utf-8") for file in FILES)
    texts = reading.split(known) | {"test": test}
    how = Training(steps, 16, lr=4e-3, momentum=0.9, weight_decay=0.1, optimizer="adamw", warmup=0.05, clip=1.0)
    return LanguageTask("wikitext2-llama", lambda: reading.splits(texts, reading.as_bytes), tiny_llama, how)


def quality(folder: Path, steps: int, seeds: int, windows: int, setting: str) -> str:
    """Measure what is not in the file of cells yet (delete lines of it to measure them anew); returns the section."""
    from pruninglab.recipes import llm as recipes

    task = task_of(folder, steps)
    dense = task.trained(0)
    file = cache_dir() / "llm_quality.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {(row := json.loads(line))["cell"]: row for line in file.read_text().splitlines()} if file.exists() else {}
    about = digest(code_version(), windows, torch.get_num_threads(), *dense.state_dict().values())
    print(f"cells are kept in {file}")
    found: Cells = {}
    for budget, options in BUDGETS.items():
        for method in METHODS:
            for seed in range(1 if method == "magnitude" else seeds):  # which looks at no text
                cell = f"{method} {budget} seed {seed} {about}"
                if cell not in known:
                    model = copy.deepcopy(dense)
                    start = time.process_time()
                    masks = getattr(recipes, method)(model, task, seed=seed, **options)
                    seconds = time.process_time() - start
                    perplexity = task.perplexity(model, "test", windows)
                    known[cell] = {"cell": cell, "perplexity": perplexity, "seconds": seconds}
                    known[cell]["sparsity"] = masks.sparsity()
                    with file.open("a") as out:
                        out.write(json.dumps(known[cell]) + "\n")
                print(known[cell], flush=True)
                found.setdefault((method, budget), []).append(known[cell])
    size = sum(parameter.numel() for parameter in dense.parameters())
    about_all = (
        f"Perplexity for each byte of {windows} windows of 128 bytes of WikiText-2's test text. A Llama of "
        f"{size / 1e6:.1f} million weights that reads bytes (the recipe of tiny-llama, {steps:,} steps on WikiText-2's "
        "validation text) is pruned in one shot, with 128 windows of its training text: mean ± standard deviation over "
        f"{seeds} draws of them. Dense: {task.perplexity(dense, 'test', windows):.3f}. Seconds are the processor's, "
        "for pruning alone. The best of each column is bold."
    )
    return table(found, about_all, setting)


def table(found: Cells, about: str, setting: str) -> str:
    rows = []
    for method in METHODS:
        cells = []
        for budget in BUDGETS:
            values = [cell["perplexity"] for cell in found[method, budget]]
            best = min(statistics.mean(c["perplexity"] for c in found[other, budget]) for other in METHODS)
            shown = f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
            cells.append(f"**{shown}**" if statistics.mean(values) == best else shown)
        seconds = statistics.mean(cell["seconds"] for budget in BUDGETS for cell in found[method, budget])
        rows.append(f"| {method} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(
        [
            f"## Quality ({setting})",
            "",
            about,
            "",
            f"| | {' | '.join(BUDGETS)} | seconds |",
            "| --- " * (len(BUDGETS) + 2) + "|",
            *rows,
            "",
            "Claims, draw by draw: one *holds* if it does for every draw, and *cannot be told* if for some only.",
            "",
            "| claim: the first is better | by how much | |",
            "| --- | --- | --- |",
            *(claim(found, better, worse) for better, worse in CLAIMS),
        ]
    )


def claim(found: Cells, better: tuple[str, str], worse: tuple[str, str]) -> str:
    """A row of the table of claims: how much higher the second perplexity is, and the verdict."""
    ones, others = ([cell["perplexity"] for cell in found[key]] for key in (better, worse))
    draws = max(len(ones), len(others))
    ones, others = (values * draws if len(values) == 1 else values for values in (ones, others))
    gains = [other / one - 1 for one, other in zip(ones, others, strict=True)]
    verdict = "cannot be told"
    if all(gain > 0 for gain in gains):
        verdict = "holds"
    elif all(gain < 0 for gain in gains):
        verdict = "**does not hold**"
    spread = f" ± {100 * statistics.stdev(gains):.1f}" if draws > 1 else ""
    names = (
        f"{better[0]} < {worse[0]} at {better[1]}"
        if better[1] == worse[1]
        else f"{better[0]}: {better[1]} < {worse[1]}"
    )
    return f"| {names} | {100 * statistics.mean(gains):+.1f} %{spread} | {verdict} |"
