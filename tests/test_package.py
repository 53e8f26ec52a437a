"""The package as a whole: what it imports, in which direction, how long its files are, what it says of itself."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pruninglab

ROOT = Path(pruninglab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAZY = [
    "torchvision",
    "transformers",
    "matplotlib",
    "pandas",
    "sklearn",
    "IPython",
    "cloudpickle",
    "distributed",
    "ipywidgets",
    "joblib",
    "papermill",
]


def name_of(path: Path) -> str:
    parts = ("pruninglab", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules of this package that a file imports; those under `if TYPE_CHECKING` do not count."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name in MODULES}


def room(name: str) -> str:
    """`pruninglab.criteria.base` → "criteria"."""
    return name.split(".")[1] if "." in name else ""


def test_importing_the_package_imports_nothing_heavy():
    code = f"import json, sys, pruninglab; print(json.dumps([m for m in {LAZY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_name_that_is_imported_only_when_used_is_seen_by_the_test_above():
    """So that the test above cannot pass by looking in the wrong place."""
    code = (
        "import sys, torch, pruninglab\n"
        "pruninglab.Masks.of(torch.nn.Linear(1, 1)).per_layer()\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_public_names_are_there():
    promised = {"Masks", "collect", "compare", "criterion", "find_sparsity", "prune", "report", "statistic", "task"}
    assert promised <= set(pruninglab.__all__)
    for name in pruninglab.__all__:
        assert getattr(pruninglab, name) is not None
    assert pruninglab.__version__ == importlib.metadata.version("pruninglab") if installed() else pruninglab.__version__


def installed() -> bool:
    try:
        importlib.metadata.version("pruninglab")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_version_is_that_of_the_project_file():
    import tomllib

    project = ROOT.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not a checkout")
    assert tomllib.loads(project.read_text())["project"]["version"] == pruninglab.__version__


def test_only_the_notebook_room_and_the_commands_know_the_notebook_room():
    for name, path in MODULES.items():
        if room(name) not in ("notebook", "cli", "book", "__main__"):
            assert not {found for found in imports(path) if room(found) == "notebook"}, name


@pytest.mark.parametrize(
    ("who", "never"),
    [
        (
            "criteria",
            {"tasks", "masks", "pruning", "units", "allocation", "schedules", "recovery", "compare", "measure"},
        ),
        (
            "tasks",
            {"pruning", "masks", "criteria", "allocation", "units", "schedules", "recovery", "statistics", "compare"},
        ),
        ("masks", {"criteria", "allocation", "pruning", "tasks", "units"}),
        ("units", {"criteria", "allocation", "pruning", "tasks", "masks"}),
        ("allocation", {"pruning", "tasks", "masks", "units"}),
        ("statistics", {"criteria", "pruning", "tasks", "masks"}),
        ("pruning", {"tasks", "schedules", "recovery", "compare", "measure", "search"}),
        ("schedules", {"recovery", "compare"}),
        ("recovery", {"schedules", "compare", "pruning"}),
        ("measure", {"compare", "pruning", "schedules", "recovery"}),
    ],
)
def test_imports_go_one_way(who, never):
    files = [path for name, path in MODULES.items() if room(name) == who]
    assert files
    for path in files:
        assert not {found for found in imports(path) if room(found) in never}, path.name


def test_no_circles():
    graph = {name: imports(path, top_level_only=True) for name, path in MODULES.items()}
    graph = {name: {other for other in found if other != name} for name, found in graph.items()}
    while graph:
        leaves = {name for name, found in graph.items() if not found & graph.keys()}
        assert leaves, f"these import each other in a circle, or depend on one: {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in leaves}


def test_nothing_below_the_notebook_room_imports_what_draws():
    for name, path in MODULES.items():
        if room(name) in ("notebook", "cli", "book", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert not {n.split(".")[0] for n in names} & {"matplotlib", "IPython", "ipywidgets"}, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a file says what it is for"


def public_things():
    for info in pkgutil.walk_packages([str(ROOT)], "pruninglab."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != info.name:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{info.name}.{name}", thing


def test_everything_public_has_a_docstring():
    things = dict(public_things())
    assert len(things) > 50
    missing = [
        name
        for name, thing in things.items()
        if not (thing.__doc__ or "").strip() or (thing.__doc__ or "").startswith(f"{thing.__name__}(")
    ]
    assert not missing, "a dataclass's own signature is no docstring either"
