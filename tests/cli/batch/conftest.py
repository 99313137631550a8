from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "scripted_specx.py"


def load(name):
    """A file of this folder that is a script as well."""
    spec = spec_from_file_location(name, HERE / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


scripted = load("scripted_specx")


@dataclass
class Outcome:
    code: int
    out: str
    err: str


class Batch:
    """Runs `specx batch` in this process with a scripted model.

    Attributes:
        asked: what was asked of each model that was opened.
        sessions: those.
    """

    def __init__(self, capfd, monkeypatch, model):
        self.capfd, self.monkeypatch, self.model = capfd, monkeypatch, str(model)
        self.asked, self.sessions = [], []
        self.options = {}

    def open(self, asked, *, progress, notice):
        self.asked.append(asked)
        self.sessions.append(scripted.session_of(asked, **self.options))
        return self.sessions[-1]

    def __call__(self, *arguments, stdin=None):
        from specx.cli.app import run

        self.monkeypatch.setattr("specx.cli.batch.reading.stdin_is_piped", lambda: stdin is not None)
        if stdin is not None:
            self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(["batch", self.model, *map(str, arguments)])
        out, err = self.capfd.readouterr()
        return Outcome(code, out, err)


@pytest.fixture
def batch(capfd, monkeypatch, model):
    runner = Batch(capfd, monkeypatch, model)
    monkeypatch.setattr("specx.engine.session.Session.open", runner.open)
    monkeypatch.setattr("specx.cli.batch.command.about", scripted.about)
    return runner


@pytest.fixture
def start(model):
    """Starts `specx batch` with a scripted model in a process of its own."""
    started = []

    def begin(*arguments, delay=0.0, **options):
        environment = {**os.environ, "SCRIPTED_DELAY": str(delay)}
        process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), "batch", str(model), *map(str, arguments)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            env=environment,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()
