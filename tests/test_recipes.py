"""Every recipe of docs/recipes.md does what it says, on the small model."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
WORDS = ("hot", "big", "dark")

# What recipes leave open, so that nothing is measured on the way.
SETTINGS = {"SPECX_KERNELS": "specx", "SPECX_DRAFTER": "none", "SPECX_CTX_SIZE": "1024", "SPECX_THREADS": "2"}


def recipes():
    """The shell blocks by the heading that they stand under, in order; the first one is for a person."""
    found, heading = {}, ""
    for part in re.split(
        r"^(## [^\n]*|```sh\n.*?^```)$", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL
    ):
        if part.startswith("## "):
            heading = part.removeprefix("## ")
        elif part.startswith("```sh"):
            found.setdefault(heading, []).append(part.removeprefix("```sh\n").removesuffix("```"))
    assert found.pop("") == ["export SPECX_MODEL=~/models/model.gguf\n"]
    return found


RECIPES = recipes()


class Shell:
    """A folder, and a shell as a person's who has the model."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def read(self, name):
        return (self.folder / name).read_text()

    def run(self, script):
        """What it writes to standard output; it must succeed, and say nothing else."""
        command = ["bash", "-euo", "pipefail", "-c", script]
        where = {"cwd": self.folder, "env": self.environment}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **where)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def shell(smollm2, store, tmp_path):
    for tool in ("bash", "jq", "curl", "git"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"SPECX_MODEL": str(smollm2), "SPECX_CACHE": str(store), **SETTINGS}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with tempfile.TemporaryDirectory() as runtime:  # sockets are in it, whose paths must be short
        shell = Shell(tmp_path, {**environment, "XDG_RUNTIME_DIR": runtime})
        shell.write("words.txt", "\n".join(WORDS) + "\n")
        yield shell


def name_of(heading):
    """The test of the recipe under a heading."""
    return "test_" + re.sub(r"\W+", "_", heading.lower())


def test_every_recipe_is_tested():
    tested = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    assert {name_of(heading) for heading in RECIPES} <= tested


@pytest.fixture
def blocks(request):
    """Those of the recipe that the test is named after."""
    return next(found for heading, found in RECIPES.items() if name_of(heading) == request.node.name)


def test_a_commit_message_from_a_diff(shell, blocks):
    shell.run("git init -q . && git config user.name A && git config user.email a@b")
    shell.write("greeting.py", 'print("hello")\n')
    shell.run("git add greeting.py")
    shell.run(blocks[0])
    message = shell.run("git log --format=%B").strip()
    assert message
    assert "\n" not in message


def test_a_line_about_every_file_of_a_folder(shell, blocks):
    shell.write("notes/one.md", 'The "meeting" is\non Monday.\n')
    shell.write("notes/two.md", "Bread, milk & eggs.\n")
    out = shell.run(blocks[0])
    first, second = out.index("notes/one.md: "), out.index("notes/two.md: ")
    assert first == 0
    assert len("notes/one.md: ") + 5 < second < len(out) - len("notes/two.md: ") - 5


def test_a_column_more_in_a_table(shell, blocks):
    shell.write("cities.csv", 'city,note\nParis,"red, ""white"""\n"Rome\nItaly",x\n')
    assert shell.run(blocks[0]) == ""
    rows = list(csv.reader(io.StringIO(shell.read("countries.csv"), newline="")))
    assert rows[0] == ["city", "note", "country"]
    assert [row[:2] for row in rows[1:]] == [["Paris", 'red, "white"'], ["Rome\nItaly", "x"]]
    assert all(row[2] for row in rows[1:])


def test_facts_as_json(shell, blocks):
    shell.write("people.txt", "Anna is 34 years old.\nTom is 8 years old.\n")
    rows = [line.split("\t") for line in shell.run(blocks[0]).splitlines()]
    assert len(rows) == 2
    assert all(len(row) == 2 and 0 <= int(row[1]) <= 120 for row in rows)


def test_what_most_samples_agree_on(shell, blocks):
    shell.write("sums.txt", "2 + 2\n1 + 1\n")
    block = blocks[0]
    answers = shell.run(block).splitlines()
    assert len(answers) == 2
    assert all(answer == "no number" or answer.isdecimal() for answer in answers)
    assert shell.run(block).splitlines() == answers


def test_a_job_for_the_night_that_goes_on_where_it_was_ended(shell, blocks):
    lines = [{"custom_id": f"q{n}", "prompt": f"Number {n} is", "max_tokens": 16} for n in range(40)]
    shell.write("requests.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    out = shell.run(blocks[0])
    assert out in ("", "ended with code 124\n")
    answered = [json.loads(line)["custom_id"] for line in shell.read("answers.jsonl").splitlines()]
    assert answered == [f"q{n}" for n in range(40)]


def test_an_editor_an_agent_or_a_script_against_a_server(shell, blocks):
    assert shell.run(blocks[0]).strip()
    assert json.loads(shell.read("health"))["status"] == "ok"


def test_a_model_that_stays_loaded_for_many_commands(shell, blocks):
    alone = "specx complete --server no"
    try:
        beside = shell.run(blocks[0].replace("specx complete", alone))
        assert shell.run(blocks[0]) == beside
    finally:
        subprocess.run(["specx", "serve", "--stop"], env=shell.environment, capture_output=True, check=False)
    assert len(beside.splitlines()) >= 2
    assert "in the background" in shell.read("log")


def test_a_loop_over_lines(shell, blocks):
    loop, pipe = blocks
    lines = shell.run(loop).splitlines()
    assert [line.split(":")[0] for line in lines] == list(WORDS)
    assert len(shell.run(pipe)) > 3


def test_several_processes_at_once(shell, blocks):
    alone, parallel = blocks
    out = shell.run(alone)
    assert len(out) > 10
    assert all((shell.folder / f"{word}.out").stat().st_size for word in WORDS)
    if shutil.which("parallel") is not None:
        # It asks to be cited, once, on standard error.
        assert shell.run(parallel.replace("parallel -j", "parallel --will-cite -j")).strip()


def test_in_the_background_after_logging_out(shell, blocks):
    assert len(shell.run(blocks[0]).splitlines()) == len(WORDS)
    assert "3 answered" in shell.read("log")
