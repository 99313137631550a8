from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main

from specx.cli.options.values import quickened

TYPED = (
    "0",
    "-7",
    "+3",
    "1_000",
    " 5",
    "1e3",
    "2.5",
    ".5",
    "5.",
    "inf",
    "nan",
    "x",
    "",
    "9" * 30,
    "true",
    "\u0663",
)


def command():
    def run(
        number: Annotated[int, typer.Option("--number")] = 1,
        small: Annotated[int, typer.Option("--small", max=5)] = 1,
        ratio: Annotated[float | None, typer.Option("--ratio")] = None,
        text: Annotated[str, typer.Option("--text")] = "a",
        texts: Annotated[list[str] | None, typer.Option("--texts")] = None,
        path: Annotated[Path | None, typer.Option("--path")] = None,
    ) -> None:
        pass

    app = typer.Typer()
    app.command()(run)
    return typer.main.get_command(app)


def taken(arguments: list[str], *, quickly: bool):
    it = command()
    if quickly:
        quickened(it.params)
    try:
        with it.make_context("run", list(arguments)) as context:
            return repr(context.params)  # in which NaN is like NaN
    except typer.BadParameter.__mro__[2] as problem:
        return problem.format_message()


@pytest.mark.parametrize("name", ["number", "small", "ratio", "text", "texts", "path"])
@pytest.mark.parametrize("typed", TYPED)
def test_a_value_is_what_typer_makes_of_it(name, typed):
    arguments = [f"--{name}={typed}"]
    assert taken(arguments, quickly=True) == taken(arguments, quickly=False)


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "text"
    path.touch()
    for given in (path, tmp_path, tmp_path / "none", "a\0b"):
        arguments = [f"--path={given}"]
        assert taken(arguments, quickly=True) == taken(arguments, quickly=False)


def test_plain_values_need_no_pydantic():
    code = (
        "import sys\nfrom specx.cli.app import run\n"
        "code = run(['complete', 'nowhere.gguf', '-p', 'x', '-n', '5', '--temp', '0.5', '-r', 'z'])\n"
        "assert (code, 'pydantic' in sys.modules) == (1, False)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
