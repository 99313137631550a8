"""Imports run one way, heavy ones stay out of `specx --help`, and torch stays in head training."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("kernels", "backends", "drafters", "engine", "cli")  # each imports only those before it
OTHER_FOLDERS = ("tests", "benchmarks", "scripts")
HEAVY = ("numpy", "llama_cpp", "gguf", "huggingface_hub", "prompt_toolkit", "rich", "jinja2", "torch")


def sources(*folders: str) -> list[Path]:
    """Every Python file of some top-level folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions and type-checking blocks too."""
    package = ("specx", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def upward(path: Path) -> list[str]:
    """Imports of a layer above the file's own, or of a part of specx that does not exist."""
    allowed = LAYERS[: LAYERS.index(path.relative_to(ROOT).parts[0]) + 1]
    ours = (name.split(".") for name in imported(path) if name.split(".")[0] == "specx")
    return [".".join(parts) for parts in ours if parts[1] not in (*allowed, "__version__")]


@pytest.mark.parametrize("path", sources(*LAYERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    assert upward(path) == []


def test_an_upward_import_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "backends").mkdir()
    path = tmp_path / "backends" / "bad.py"
    path.write_text(
        "from ..engine import plan\nfrom . import base\nfrom specx import cli, __version__\n"
        "def f():\n    import specx.drafters.base\n    import numpy\n"
    )
    assert sorted(upward(path)) == ["specx.cli", "specx.drafters.base", "specx.engine.plan"]


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    named = {}
    for path in sources(*LAYERS):
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(("specx", *(part for part in parts if part != "__init__")))] = path
    return named


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports, wherever in it that stands."""
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        names = {full if full in known else full.rpartition(".")[0] for full in imported(path)}
        found[name] = (names & known.keys()) - {name}
    return found


def circles(edges: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves by way of others, and those between them."""
    left = {name: set(others) for name, others in edges.items()}
    while True:
        used = set().union(*left.values()) if left else set()
        ends = {name for name, others in left.items() if not others or name not in used}
        if not ends:
            return set(left)
        left = {name: others - ends for name, others in left.items() if name not in ends}


def test_imports_form_no_circle():
    assert circles(graph(modules())) == set()


def test_a_circle_would_be_seen():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(edges) == {"b", "c"}


@pytest.mark.parametrize("folder", ["engine/cost", "engine/setup", "engine/learned", "engine/text", "engine"])
def test_nothing_below_imports_what_reports(folder):
    """Reports and comparisons read what was decided; nothing that decides reads them."""
    named = {f"specx.engine.{room}" for room in ("report", "bench")}
    seen = {
        (path.name, name)
        for path in (ROOT / folder).glob("*.py")
        for name in imported(path)
        if ".".join(name.split(".")[:3]) in named
    }
    assert seen == set()


def test_only_head_training_imports_torch():
    files = [
        path for path in sources(*LAYERS) if any(name.split(".")[0] == "torch" for name in imported(path))
    ]
    assert [path for path in files if path.parent.name != "train"] == []


def test_every_python_file_is_in_a_known_folder():
    known = {*LAYERS, *OTHER_FOLDERS}
    ignored = {"build", "dist"}
    folders = {path.parts[len(ROOT.parts)] for path in ROOT.glob("*/**/*.py")}
    assert {name for name in folders if not name.startswith(".")} - known - ignored == set()
    assert list(ROOT.glob("*.py")) == []


def test_every_folder_of_the_package_has_an_init_file():
    folders = {path.parent for path in sources(*LAYERS)}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["complete", "--help"], ["chat", "--help"], ["bench", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\nfrom specx.cli.app import run\ncode = run(sys.argv[1:])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert (code, heavy) == (0, []), (code, heavy)\n"
    )
    command = [sys.executable, "-P", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
