"""`python -m pruninglab …`: compare criteria from a shell, list what there is, run the book.

Exit codes: 0, all went well; 1, something failed, and it is said what; 2, wrong usage; 130, interrupted (Ctrl-C);
141, whoever read the output had enough of it (`… | head`).
"""

import argparse
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pruninglab.book import BOOK, run_all
from pruninglab.compare import BASELINES, compare
from pruninglab.files import writable
from pruninglab.listings import LISTINGS
from pruninglab.loading import load_function

if TYPE_CHECKING:
    import pandas as pd

ROOT = BOOK.parent
CONNECTING = 10  # seconds that a cluster may take to answer


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (--help tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit code. Wrong usage ends in SystemExit with code 2."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\nInterrupted. {options.interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain when it ends
        return 141


def _parser() -> Parser:
    parser = Parser(prog="python -m pruninglab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], told: str, interrupted: str = "") -> Parser:
        sub = commands.add_parser(name, help=told, description=told)
        sub.set_defaults(run=run, parser=sub, interrupted=interrupted)
        return sub

    _compare_options(command("compare", _compare, "criteria × sparsities × seeds: a table, and what is better"))
    for name, (told, make) in LISTINGS.items():
        command(name, _list, f"list {told}").set_defaults(make=make)
    command("doctor", _doctor, "what is installed, what this machine is, and what to do about each fault")
    again = "Run the same command again."
    book = command("book", _book, "run every chapter through papermill, with a table of run times", again)
    book.add_argument("--out", type=Path, default=ROOT / "build" / "book", help="where the executed copies go")
    book.add_argument("--fast", action="store_true", help="with fewer seeds and steps")
    book.add_argument("--seed", type=int, default=0, help="another seed for everything")
    on = "Run the same command again: it goes on where it stopped."
    ledger = command("ledger", _ledger, "test every claim of the book, into book/ledger.md (about 20 minutes)", on)
    ledger.add_argument("--check", action="store_true", help="run nothing; mark what is of another version of the code")
    command("names", _names, "list which chapter introduces which public name, and write it to book/names.md")
    site = command("site", _site, "make the HTML book, running what has no results of this code yet (20 minutes)", on)
    site.add_argument("--fast", action="store_true", help="of a quick version of the chapters, which the pages say")
    site.add_argument("--no-run", action="store_true", help="run nothing; a chapter without results says so")
    site.add_argument("--pdf", action="store_true", help="a print version too, by Chromium")
    site.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="where the pages go")
    command("readme", _readme, "make the README's picture and tables again", again)
    for name, told in (
        ("student", "without its solutions (needs nbgrader)"),
        ("solutions", "with every exercise solved"),
    ):
        sub = command(name, _version, f"write the whole book {told} to a folder", again)
        sub.add_argument(
            "out", nargs="?", type=Path, help=f"a folder that is empty or not there (build/{name}, made anew)"
        )
        sub.set_defaults(version=name)
    grade = command("grade", _grade, "grade notebooks that were handed in (they run with your rights)", again)
    grade.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="chapters or labs, damaged ones too")
    grade.add_argument("--of", type=Path, metavar="NOTEBOOK", help="the chapter or lab that they are of (found out)")
    grade.add_argument("--time-limit", type=float, default=30, metavar="SECONDS", help="for one exercise (30)")
    grade.add_argument("--out", type=Path, metavar="FILE", help="write the table, as .csv or .json")
    llama = command("tiny-llama", _tiny_llama, "train the language model that ships in data/ again (minutes)", again)
    llama.add_argument("--out", type=Path, default=None, help="where to write it instead")
    return parser


# ── compare ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _compare_options(parser: Parser) -> None:
    add = parser.add_argument
    add("criteria", nargs="*", help="my_file.py:my_score, or the name of a built-in one; the baselines are always in")
    add("--task", nargs="+", default=["digits-mlp"], metavar="TASK", help="one or several (digits-mlp)")
    levels = [0.5, 0.8, 0.9, 0.95]
    add("--sparsity", nargs="+", type=float, default=levels, metavar="S", help="fractions removed (0.5 0.8 0.9 0.95)")
    add("--seeds", type=int, default=5, metavar="N", help="how many networks (5)")
    for name, usual in (("unit", "weight"), ("allocation", "global"), ("schedule", "one_shot"), ("recovery", "none")):
        add(f"--{name}", nargs="+", default=[usual], metavar="NAME", help=f"one or several ({usual})")
    add("--first-seed", type=int, default=0, metavar="SEED", help="of these networks, for fresh ones (0)")
    add("--exclude", nargs="+", default=[], metavar="LAYER", help="layers to leave alone, names or globs")
    add("--calibration", type=int, default=256, metavar="N", help="how many training samples criteria see (256)")
    add("--metrics", nargs="+", default=[], metavar="NAME", help="what else to measure")
    add("--time-limit", type=float, default=None, metavar="SECONDS", help="for one pruning")
    add("--csv", type=Path, metavar="FILE", help="write all rows")
    add("--markdown", type=Path, metavar="FILE", help="write the tables that are printed")
    add("--report", type=Path, metavar="FILE", help="write an HTML page with figures")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=None, metavar="N", help="processes; -1 for one on each core (1)")
    where.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler, such as tcp://10.0.0.1:8786")
    add("--no-cache", action="store_true", help="neither look results up nor store them")


def _compare(options: argparse.Namespace) -> int:
    from pruninglab.notebook import report

    on = "Nothing was stored." if options.no_cache else "Run the same command again: it goes on where it stopped."
    options.interrupted = on
    for path in (options.csv, options.markdown, options.report):
        if path is not None:
            _check_file(path, options.parser)
    try:
        criteria = [load_function(name) if _is_file(name) else name for name in options.criteria]
        with _workers(options), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ runs of")  # they are told below
            table = compare(
                criteria,
                task=options.task,
                sparsity=options.sparsity,
                unit=options.unit,
                allocation=options.allocation,
                schedule=options.schedule,
                recovery=[None if name == "none" else name for name in options.recovery],
                seeds=range(options.first_seed, options.first_seed + options.seeds),
                exclude=options.exclude,
                calibration=options.calibration,
                metrics=options.metrics,
                time_limit=options.time_limit,
                n_jobs=options.jobs,
                cache=not options.no_cache,
            )
    except (ValueError, TypeError) as error:
        options.parser.error(str(error))
    except BrokenExecutor as error:
        print(f"{options.parser.prog}: {' '.join(str(error).split())} {on}", file=sys.stderr)
        return 1
    chosen = report.own(table) or [name for name in options.criteria if name not in BASELINES]
    told = report.summary(table, chosen)
    print("\n\n".join(f"{caption}\n\n{frame.to_string(index=False)}" for caption, frame in told))
    if options.csv:
        report.write(options.csv, table.to_csv(index=False))
    if options.markdown:
        tables = [f"{caption}\n\n{report.markdown(frame)}\n" for caption, frame in told]
        report.write(options.markdown, "\n".join(tables))
    if options.report:
        report.write_report(table, options.report, chosen)
    return int(table["accuracy"].isna().any())


def _is_file(name: str) -> bool:
    return ":" in name or name.endswith(".py")


def _check_file(path: Path, parser: Parser) -> None:
    """Before the work begins, whether its result can be written."""
    if path.is_dir() or not writable(path.absolute().parent):
        parser.error(f"cannot write to {str(path)!r}")


@contextmanager
def _workers(options: argparse.Namespace) -> Iterator[None]:
    """While this holds, joblib sends work to the cluster, if one was named."""
    if options.cluster is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError:
        options.parser.error("--cluster needs Dask: pip install 'pruninglab[cluster]'")
    from joblib import parallel_config

    try:
        client = Client(options.cluster, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        options.parser.error(f"no Dask scheduler answers at {options.cluster!r}: {error}")
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECTING)
        except TimeoutError:
            options.parser.error(f"the cluster at {options.cluster!r} has no worker")
        with parallel_config(backend="dask", client=client):
            yield


# ── the others ────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(options: argparse.Namespace) -> int:
    """Names and what is said of them; broken to the width of a terminal, but not for other programs."""
    *columns, told = zip(*options.make(), strict=True)
    widths = [max(map(len, column)) for column in columns]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for *cells, text in zip(*columns, told, strict=True):
        start = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + "  "
        indent = " " * min(len(start), 20)
        print(textwrap.fill(text, room, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False))
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    from pruninglab.doctor import diagnose

    found = list(diagnose())
    for name, what, advice in found:
        print(f"{'✘' if advice else '✔'} {name + ':':13}{what}" + (f"\n  → {advice}" if advice else ""))
    return int(any(advice for *_, advice in found))


def _ledger(options: argparse.Namespace) -> int:
    from pruninglab.notebook.ledger import command

    return command(options.check)


def _site(options: argparse.Namespace) -> int:
    from pruninglab.notebook.site import command

    return command(options.out, fast=options.fast, run=not options.no_run, pdf=options.pdf)


def _book(options: argparse.Namespace) -> int:
    table = run_all(options.out, {"seed": options.seed} | ({"fast": True} if options.fast else {}))
    print(table.to_string(index=False))
    print(f"{table['seconds'].sum():.0f} seconds in all; the executed chapters are in {options.out}")
    return int((table["state"] != "ok").any())


def _names(options: argparse.Namespace) -> int:
    from pruninglab.notebook import names

    options.make = lambda: names.rows(names.write())
    return _list(options)


def _version(options: argparse.Namespace) -> int:
    from pruninglab.notebook.versions import solved_version, student_version, write_version

    make = student_version if options.version == "student" else solved_version
    out = options.out or ROOT / "build" / options.version
    try:
        files = write_version(out, make, replace=options.out is None)
    except OSError as error:
        options.parser.error(str(error))
    except ModuleNotFoundError as error:
        print(f"{options.parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} files are in {out}")
    return 0


def _grade(options: argparse.Namespace) -> int:
    """Wrong answers are a result; only a notebook that cannot be graded is a failure."""
    from pruninglab.notebook import grading, report

    out = options.out
    if out is not None:
        if out.suffix not in (".csv", ".json"):
            options.parser.error(f"--out is a file that ends in .csv or .json, not {str(out)!r}")
        _check_file(out, options.parser)
    if not options.time_limit > 0:
        options.parser.error(f"--time-limit is a number of seconds above 0, not {options.time_limit:g}")

    def write(table: "pd.DataFrame") -> None:
        if out is not None:
            text = table.to_csv(index=False) if out.suffix == ".csv" else table.to_json(orient="records", indent=2)
            report.write(out, text)
            options.interrupted = f"What was graded until then is in {out}."

    try:
        table = grading.grade(options.notebooks, of=options.of, time_limit=options.time_limit, after_each=write)
    except (ValueError, OSError) as error:
        options.parser.error(str(error))
    print(grading.as_text(table))
    return int((table["result"] == grading.NOT_GRADED).any())


def _readme(options: argparse.Namespace) -> int:
    from pruninglab.notebook.readme import write

    write(ROOT)
    return 0


def _tiny_llama(options: argparse.Namespace) -> int:
    from pruninglab.tasks.language import SHIPPED, ship

    ship(options.out or SHIPPED)
    return 0
