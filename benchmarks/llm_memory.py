"""How much memory it takes to prune a language model: loaded whole, or streamed from its files block by block.

    python benchmarks/llm_memory.py [--blocks 24] [--width 1024] [--sequences 16]

A Llama of random weights is written to a temporary folder. Each way prunes it in a process of its own, on one thread;
counted is what the process holds itself (anonymous pages, not those of files), sampled every 5 ms, above what it held
when the libraries were loaded. The table goes to results/llm.md, as a section of its own. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from pages import replace_sections

from pruninglab.language import one_shot, repaired, scored
from pruninglab.language.streaming import stream

RESULTS = Path(__file__).parent / "results" / "llm.md"
STEPS = {"Wanda": scored, "SparseGPT": repaired}
TOKENS, WORDS = 128, 2048


def held() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def prune(source: Path, target: Path, way: str, step: str, sequences: int) -> None:
    """Prune one model in one way, and print the peak and the seconds."""
    torch.set_num_threads(1)
    data = torch.randint(WORDS, (sequences, TOKENS), generator=torch.Generator().manual_seed(0))
    before, peak, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, held())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    if way == "streamed":
        stream(source, target, data, STEPS[step](), 0.5)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
        one_shot(model, data, STEPS[step](), 0.5)
        model.save_pretrained(target)
    seconds = time.process_time() - start
    done.set()
    watcher.join()
    print(peak - before, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=16, help=f"of {TOKENS} tokens, to calibrate with")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # what the processes are called with
    options = parser.parse_args()
    if options.one:
        source, target, way, step = options.one
        prune(Path(source), Path(target), way, step, options.sequences)
        return
    if not sys.platform.startswith("linux"):
        raise SystemExit("memory is read from /proc, which Linux has")
    width = options.width
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=options.blocks,
        num_attention_heads=width // 64,
        vocab_size=WORDS,
    )
    rows = [
        f"## Memory (torch {torch.__version__}, one thread, {date.today()})",
        "",
        "",
        "",
        "| method | way | peak, MB | of the model | of the model and a block | processor seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "whole"
        model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(source)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
        del model
        rows[2] = (
            f"A Llama of {options.blocks} blocks and random weights, {size / 1e6:,.0f} MB in float32, "
            f"{block / 1e6:.0f} MB a block; {options.sequences} sequences of {TOKENS} tokens. Peak: anonymous memory "
            "above that of the loaded libraries, with what the system's allocator keeps of what was freed. *Whole*: "
            "`from_pretrained`, `one_shot`, `save_pretrained`; *streamed*: `stream`."
        )
        for step in STEPS:
            for way in ("whole", "streamed"):
                target = Path(folder) / f"{way} {step}"
                command = [sys.executable, __file__, "--sequences", str(options.sequences)]
                command += ["--one", str(source), str(target), way, step]
                printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
                peak, seconds = map(float, printed.split()[-2:])
                share = f"{peak / size:.2f} | {peak / (size + block):.2f}"
                rows.append(f"| {step} | {way} | {peak / 1e6:,.0f} | {share} | {seconds:.0f} |")
                print(rows[-1], flush=True)
    replace_sections(RESULTS, "# One-shot pruning of language models", ["\n".join(rows)])


if __name__ == "__main__":
    main()
