"""`python -m pruninglab …`: running the book, and making what the README shows."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pruninglab.book import BOOK, run_all

ROOT = BOOK.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit code (0: well, 1: something failed, 2: wrong usage)."""
    parser = argparse.ArgumentParser(prog="python -m pruninglab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    book = commands.add_parser("book", help="run every chapter through papermill, with a table of run times")
    book.add_argument("--out", type=Path, default=ROOT / "build" / "book", help="where the executed copies go")
    book.add_argument("--fast", action="store_true", help="with fewer seeds and steps")
    book.add_argument("--seed", type=int, default=0, help="another seed for everything")
    commands.add_parser("readme", help="make the README's picture and tables again")
    llama = commands.add_parser("tiny-llama", help="train the language model that ships in data/ again (minutes)")
    llama.add_argument("--out", type=Path, default=None, help="where to write it instead")
    options = parser.parse_args(arguments)
    if options.command == "readme":
        from pruninglab.notebook.readme import write

        write(ROOT)
        return 0
    if options.command == "tiny-llama":
        from pruninglab.tasks.language import SHIPPED, ship

        ship(options.out or SHIPPED)
        return 0
    table = run_all(options.out, {"seed": options.seed} | ({"fast": True} if options.fast else {}))
    print(table.to_string(index=False))
    print(f"{table['seconds'].sum():.0f} seconds in all; the executed chapters are in {options.out}")
    return int((table["state"] != "ok").any())
