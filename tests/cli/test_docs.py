"""docs/cli.md says what there is, and nothing that there is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from specx.cli.chat import Chat
from specx.cli.commands import app, every_command
from specx.cli.generation import Request
from specx.cli.options.read import GenerationOptions
from specx.engine.session import Timings
from specx.engine.settings import SamplingSettings

ROOT = Path(__file__).resolve().parents[2]
WHOLE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DOC = WHOLE.partition("<!-- made by ")[0]  # the rest is made from the code
OPTIONS = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", DOC))
QUOTED = set(re.findall(r"`([^`]+)`", DOC))


def commands():
    found = {"specx": typer.main.get_command(app)}
    for name, command in every_command().items():
        found[f"specx {name}"] = command
        for below, inner in getattr(command, "commands", {}).items():
            found[f"specx {name} {below}"] = inner
    return found


COMMANDS = commands()
LEAVES = {name for name, command in COMMANDS.items() if not getattr(command, "commands", {})}


def options(command, *, hidden: bool = False) -> set[str]:
    parameters = [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and (hidden or not parameter.hidden)
    ]
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


def test_what_is_made_from_the_code_is_current():
    script = [sys.executable, "-P", str(ROOT / "scripts" / "cli_reference.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"### `{name}`" in WHOLE for name in COMMANDS if name in LEAVES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_mentioned(name):
    assert options(COMMANDS[name]) - OPTIONS == set()
    assert name in DOC


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name
)
def test_tables_end_before_anything_else_begins(path):
    lines = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8")).splitlines()
    glued = [
        below for above, below in pairwise(lines) if above.startswith("|") and below[:1] not in ("", "|")
    ]
    assert glued == []


def test_no_option_is_made_up():
    known = {option for command in COMMANDS.values() for option in options(command, hidden=True)}
    assert OPTIONS - known - {"-h", "--help", "-1"} == set()


def test_the_variables_of_llama_cpp_are_those_that_are_read():
    read = {
        name
        for command in COMMANDS.values()
        for parameter in command.params
        for name in (parameter.envvar if isinstance(parameter.envvar, list) else [parameter.envvar])
        if name and name.startswith("LLAMA_ARG_")
    }
    assert set(re.findall(r"LLAMA_ARG_\w+", DOC)) == read


def test_every_chat_command_is_mentioned(specx):
    talk = Chat(specx.session, Request(SamplingSettings(), GenerationOptions()))
    named = {text.split()[0] for quoted in QUOTED for text in quoted.split(",") if text.startswith("/")}
    assert set(talk.commands) <= named


def test_every_json_field_is_mentioned(specx):
    whole = json.loads(specx("complete", specx.model, "-p", "x", "--json").out)
    step = json.loads(specx("complete", specx.model, "-p", "x", "--stream-json").out.splitlines()[0])
    assert {*whole, *whole["timings"], *Timings().as_dict(), *step} - QUOTED == {"done"}
    assert "`done: false`" in DOC and "`done: true`" in DOC


def test_the_configuration_shown_is_valid(specx, monkeypatch, tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(example)
    monkeypatch.setenv("SPECX_CONFIG", str(path))
    assert specx("complete", specx.model, "-p", "x").code == 0
    assert specx.session.samplings[-1].temperature == 0.7
    assert specx.settings[-1].drafter == "suffix"
