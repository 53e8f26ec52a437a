"""The process in which handed-in code runs. It sends a line of JSON when it is ready, and one for each question."""

import ast
import builtins
import json
import linecache
import os
import symtable
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import matplotlib

import pruninglab.notebook
from pruninglab.notebook import answers, exercises  # noqa: F401  the answers make the exercises known
from pruninglab.notebook.grading import GIVEN


def work(connection: Connection, cells: list[tuple[str, str]], waiting: list[dict[str, Any]]) -> None:
    """Send "ready", and then the grade of each question as JSON."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that all of it can be ended
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what learners print, and what they ask for
        os.dup2(nothing, stream)
    matplotlib.use("agg")  # no windows
    # `f = check(f)` must leave the learner's function where it is.
    pruninglab.notebook.check = exercises.check = lambda function, *_, **__: function
    connection.send_bytes(b"ready")
    for result in grades(cells, waiting):
        connection.send_bytes(json.dumps(result).encode())


def grades(cells: list[tuple[str, str]], waiting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Grade questions one by one, with what cells, each a name and its code, define."""
    statements, unread = _statements(cells)
    for question in waiting:
        yield {"exercise": question["name"], **_one(question["name"], question["tests"], statements, unread)}


Statement = tuple[ast.stmt, str, set[str], set[str]]  # with its file's name, the names it binds, and those it uses


def _statements(cells: list[tuple[str, str]]) -> tuple[list[Statement], list[tuple[str, str]]]:
    """All statements of the cells that can be read; and the others' text, with what is wrong."""
    from IPython.core.inputtransformer2 import TransformerManager

    statements, unread = [], []
    for name, cell in cells:
        source = cell.partition("\n")[2] if cell.startswith("%%") else cell  # %%time and the like
        try:
            source = TransformerManager().transform_cell(source)
            body = ast.parse(source, name).body
            statements.extend([(statement, name, *_names(statement)) for statement in body])
        except (SyntaxError, ValueError, RecursionError) as error:
            unread.append((cell, f"{name} is no Python: {error}"))
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    imported = {bound for one in statements if isinstance(one[0], ast.Import | ast.ImportFrom) for bound in one[2]}
    # What a statement does to a module is not for others to see: `torch.equal = …` would be.
    return [(one, name, binds | (_filled(one) - imported), uses) for one, name, binds, uses in statements], unread


def _filled(statement: ast.stmt) -> set[str]:
    """The names of what a statement fills: `table[k] = …`, `thing.size = …`, `table.append(…)`, in loops too."""
    found: set[str] = set()
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        part: ast.AST = ast.Pass()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            part = node.value.func
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            part = node
        while isinstance(part, ast.Subscript | ast.Attribute):
            part = part.value
            if isinstance(part, ast.Name):
                found.add(part.id)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _names(code: str | ast.stmt) -> tuple[set[str], set[str]]:
    """The global names that a piece of code binds, and those that it uses, in functions too."""
    top = symtable.symtable(code if isinstance(code, str) else ast.unparse(code), "code", "exec")
    binds = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    uses = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = top.get_children()
    while tables:
        table = tables.pop()
        uses |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables.extend(table.get_children())
    return binds, uses


def _one(
    name: str,
    tests: list[tuple[float, str]],
    statements: list[Statement],
    unread: list[tuple[str, str]],
) -> dict[str, Any]:
    """The grade of one question, as the fields of `grading.Grade` without the name."""
    of = sum(points for points, _ in tests) if tests else 1.0
    wanted = {name}
    for _, code in tests:
        binds, uses = _names(code)
        wanted |= uses - binds - set(vars(builtins))
    space, errors = _run(wanted, [one for one in statements if not _left_over(one, name, statements)])
    function = space.get(name)
    if not callable(function):
        broken = [what for text, what in unread if f"def {name}" in text]
        what = errors.get(name) or (broken[-1] if broken else "")
        defined = [(one[0].name, one[1]) for one in statements if isinstance(one[0], ast.FunctionDef)]
        ours = {other for other, cell in defined if cell == GIVEN}
        theirs = dict.fromkeys(other for other, _ in defined if other not in ours)
        if not what and name not in space and theirs:
            known = f"no function has this name; there is {', '.join(theirs)}"
            return {"result": "not handed in", "of": of, "problem": known}
        if name in space:
            what = f"{name} is {function!r:.50}, not a function"
        return {"result": "wrong" if what else "not handed in", "of": of, "problem": what}
    if tests:
        return _lab(function, tests, space, of)
    failure = exercises.first_failure(exercises.EXERCISES[name], function)
    if failure is None:
        return {"result": "right", "points": of, "of": of}
    _, sentence, problem = failure
    if exercises.is_unwritten(problem):
        return {"result": "not written", "of": of}
    return {"result": "wrong", "of": of, "problem": f"{sentence}: {problem}"}


def _lab(function: Any, tests: list[tuple[float, str]], space: dict[str, Any], of: float) -> dict[str, Any]:
    """Run a lab's tests, each in a fresh copy of the names."""
    got, problems = 0.0, []
    for points, code in tests:
        # The test's own assertions are messages; anything else is told with the learner's line.
        problem = exercises.problem_of(function, lambda _, code=code: exec(code, dict(space)))  # type: ignore[misc]
        if problem is None:
            got += points
        else:
            problems.append(problem)
    if not problems:
        return {"result": "right", "points": got, "of": of}
    if all(map(exercises.is_unwritten, problems)) and not got:
        return {"result": "not written", "of": of}
    return {"result": "partly right" if got else "wrong", "points": got, "of": of, "problem": problems[0]}


def _run(wanted: set[str], statements: list[Statement]) -> tuple[dict[str, Any], dict[str, str]]:
    """Run what binds the wanted names, and what that needs, in order; what they are then, and what went wrong."""
    needed: set[int] = set()
    while True:
        more = {
            number
            for number, (_, _, binds, _) in enumerate(statements)
            if number not in needed and (binds & wanted or "*" in binds)
        }
        if not more:
            break
        needed |= more
        wanted = wanted.union(*(statements[number][3] for number in more))
    space: dict[str, Any] = {"__name__": "handed_in"}
    errors: dict[str, str] = {}
    for number in sorted(needed):
        statement, file, binds, _ = statements[number]
        try:
            exec(compile(ast.Module([statement], []), file, "exec"), space)
        except BaseException as error:  # sys.exit too: the other exercises go on
            errors |= dict.fromkeys(binds, f"{file}, line {statement.lineno}: {type(error).__name__}: {error}")
    return space, errors


def _left_over(statement: Statement, name: str, statements: list[Statement]) -> bool:
    """Whether this is the function as it was handed out, while a written one stands elsewhere: a doubled cell."""
    written = [
        one for one in statements if name in one[2] and isinstance(one[0], ast.FunctionDef) and not _empty(one[0])
    ]
    return bool(written) and name in statement[2] and _empty(statement[0])


def _empty(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.FunctionDef):
        return False
    rest = statement.body[1:] if ast.get_docstring(statement) is not None else statement.body
    return len(rest) == 1 and ast.unparse(rest[0]).startswith("raise NotImplementedError")
