"""What `import pruninglab` costs beyond `import torch`, in CPU seconds of fresh processes, and what it drags in.

python benchmarks/import_time.py [--rounds 7]
"""

import argparse
import os
import statistics
import subprocess
import sys

CODE = """
import sys, time
import torch
start = time.process_time()
import pruninglab
heavy = ("torchvision", "transformers", "matplotlib", "pandas", "sklearn")
print(time.process_time() - start, *(name for name in heavy if name in sys.modules))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    outputs = []
    for turn in range(options.rounds + 1):
        done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True, env=plain)
        if turn:  # the first round writes the bytecode
            outputs.append(done.stdout.split())
    seconds = [float(words[0]) for words in outputs]
    dragged = ", ".join(sorted({name for words in outputs for name in words[1:]})) or "none"
    print(f"import pruninglab: {statistics.median(seconds):.3f} CPU s more than import torch")
    print(f"({min(seconds):.3f} to {max(seconds):.3f}, {options.rounds} rounds); also imported: {dragged}")


if __name__ == "__main__":
    main()
