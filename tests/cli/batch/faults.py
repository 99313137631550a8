"""Batches that are killed at random moments and gone on with, until nothing is lost, doubled or torn.

Each run is a process of its own, forked from this one, in which everything is imported: so it begins within
some milliseconds. It ends by SIGKILL from outside at a random moment, within a write, or between two
writes; after some of these the ends of the files are cut off, as a loss of power does. Then it is run again
with --resume. What comes out must be what an undisturbed run gives.

    python -P tests/cli/batch/faults.py --kills 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

HERE = Path(__file__).parent
ITEMS = 60
WAYS = ("moment", "torn", "between", "power")


def _module(name):
    spec = spec_from_file_location(name, HERE / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Form:
    """One kind of batch: the input, how it is called, and what of its output does not depend on time."""

    name: str
    suffix: str
    arguments: tuple[str, ...] = ()
    ordered: bool = True
    exit_code: int = 0

    def input(self, number):
        """An input whose items are asked more than once, and partly wrong."""
        chance = random.Random(number)
        words = [chance.choice(("red", "green", "blue", 'a "b"', "two\twords")) for _ in range(ITEMS)]
        if self.name.startswith("openai"):
            lines = []
            for i, word in enumerate(words):
                body = {"messages": [{"role": "user", "content": word}], "max_tokens": 1 + i % 9}
                if i % 11 == 5:
                    body["temperature"] = "hot"
                line = {
                    "custom_id": f"item-{i}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
                lines.append(json.dumps(line) if i % 17 != 7 else "{broken")
            return "\n".join(lines).encode()  # the last line has no end
        if self.name.startswith("table"):
            rows = [f'{i},"say {word.replace(chr(34), chr(34) * 2)}\nor not"' for i, word in enumerate(words)]
            rows[3::7] = ["too,many,cells"] * len(rows[3::7])
            return "\r\n".join(["number,text", *rows]).encode() + b"\r\n"
        data = [word.encode() for word in words]
        data[3::7] = [b"\xff"] * len(data[3::7])
        return b"\n".join(data) + b"\n\n"

    def seen(self, output):
        """The lines of an output, without what a clock says."""
        data = output.read_bytes()
        assert data.endswith(b"\n"), "the last line has no end"
        if "openai" not in self.name and "jsonl" not in self.name:
            lines = data.split(b"\n")
            return lines if self.ordered else sorted(lines)
        lines = []
        for line in data.splitlines():
            value = json.loads(line)
            body = (value.get("response") or {}).get("body") or value
            for name in ("created", "timings", "usage"):
                body.pop(name, None)
            lines.append(json.dumps(value))
        return lines if self.ordered else sorted(lines)


FORMS = (
    Form("openai", ".jsonl", exit_code=3),
    Form("openai unordered", ".jsonl", ("--unordered",), ordered=False, exit_code=3),
    Form("text", ".txt", ("--text", "-n", "6"), exit_code=3),
    Form("jsonl of lines", ".txt", ("-n", "6", "-k", "2"), exit_code=3),
    Form("table", ".csv", ("--template", "{text}", "-n", "6"), exit_code=3),
    Form(
        "table unordered",
        ".csv",
        ("--template", "{text}", "-n", "6", "--unordered"),
        ordered=False,
        exit_code=3,
    ),
)


@dataclass
class Faults:
    """Kills batches in a folder.

    Attributes:
        killed: way -> how many runs ended so.
        batches: how many were finished in spite of it, and compared.
    """

    folder: Path
    chance: random.Random
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    batches: int = 0

    def __post_init__(self):
        self.scripted = _module("scripted_specx")
        self.scripted.install()
        self.model = self.folder / "model.gguf"
        self.model.touch()
        form = FORMS[0]
        self._run(form, self._input(form, 0), self.folder / "warm.jsonl")  # imports everything

    def until(self, kills):
        """Kill so many runs, of all forms in turn."""
        number = 0
        while sum(self.killed.values()) < kills:
            form = FORMS[number % len(FORMS)]
            number += 1
            self.batch(form, number, kills)

    def batch(self, form, number, kills):
        """One batch, killed again and again while there are kills left, against an undisturbed one."""
        source = self._input(form, number)
        expected, output = self.folder / f"expected{form.suffix}", self.folder / f"out{form.suffix}"
        for path in (expected, output):
            for beside in ("", ".batch", ".errors.jsonl"):
                Path(f"{path}{beside}").unlink(missing_ok=True)
        assert self._run(form, source, expected) == form.exit_code
        here = 0
        while here < 12 and sum(self.killed.values()) < kills:
            here += 1
            way = self.chance.choice(WAYS)
            code = self._run(form, source, output, way)
            if code >= 0:
                break
            self.killed[way] += 1
        code = self._run(form, source, output)
        assert code == form.exit_code, (form.name, code, (self.folder / "stderr").read_text())
        assert form.seen(output) == form.seen(expected), f"{form.name}, batch {number}: not the same"
        errors = [Path(f"{path}.errors.jsonl") for path in (output, expected)]
        kept = [sorted(path.read_bytes().splitlines()) if path.exists() else None for path in errors]
        assert kept[0] == kept[1], f"{form.name}, batch {number}: other errors"
        self.batches += 1

    def _input(self, form, number):
        path = self.folder / f"in{form.suffix}"
        path.write_bytes(form.input(number))
        return path

    def _run(self, form, source, output, way=None):
        """One process; returns its exit code, negative if a signal ended it."""
        arguments = ["batch", self.model, source, "-o", output, "-s", "7", "--resume", "-q", "--parallel"]
        arguments += [self.chance.choice((1, 3, 8)), *form.arguments]
        writes, part = self.chance.randint(1, 40), self.chance.random()
        if way == "between" or (way == "power" and part < 0.5):
            part = 1.0
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 1)
                os.dup2(os.open(self.folder / "stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
                if way in ("torn", "between", "power"):
                    _kill_at(writes, part)
                elif way == "moment":
                    os.environ["SCRIPTED_DELAY"] = "0.002"
                from specx.cli.app import run

                code = run([str(argument) for argument in arguments])
            finally:
                os._exit(code)
        if way == "moment":
            time.sleep(self.chance.uniform(0.0, 0.6))
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if way == "power" and status < 0:
            for beside in ("", ".batch", ".errors.jsonl"):
                self._cut(Path(f"{output}{beside}"))
        return status

    def _cut(self, path):
        """The end of a file is lost, or nothing but its length is left of it."""
        header = len(path.open("rb").readline()) if path.suffix == ".batch" and path.exists() else 0
        if not path.exists() or path.stat().st_size <= header:
            return
        size = max(path.stat().st_size - self.chance.choice((0, 1, 5, 60, 700)), header)
        os.truncate(path, size)


def _kill_at(writes, part):
    """In this process: at the write of that number, SIGKILL when `part` of it is written."""
    write, left = os.write, writes

    def written(descriptor, data):
        nonlocal left
        if descriptor > 2:
            left -= 1
        if left <= 0 and descriptor > 2:
            write(descriptor, bytes(data)[: int(len(data) * part)])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    os.write = written


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SPECX_CACHE": folder, "SPECX_CONFIG": f"{folder}/config.toml"}
        Path(folder, "config.toml").touch()
        begun = time.monotonic()
        faults = Faults(Path(folder), random.Random(chosen.seed))
        faults.until(chosen.kills)
    killed = ", ".join(f"{count} {way}" for way, count in faults.killed.items())
    seconds = time.monotonic() - begun
    print(f"{sum(faults.killed.values())} runs killed ({killed}), in {seconds:.0f} s")
    print(f"{faults.batches} batches finished in spite of it, each the same as undisturbed")


if __name__ == "__main__":
    main()
