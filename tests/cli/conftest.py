from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fake_specx.py")


def _load_fake():
    spec = importlib.util.spec_from_file_location("fake_specx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_specx"] = module
    spec.loader.exec_module(module)
    return module


fake_specx = _load_fake()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


class Runner:
    """Runs command lines in this process against one fake session."""

    def __init__(self, capfd, monkeypatch, model: Path):
        self.capfd, self.monkeypatch, self.model = capfd, monkeypatch, str(model)
        self.session = fake_specx.Session()
        self.settings = []

    def open(self, settings):
        self.settings.append(settings)
        self.session.drafter_name = settings.drafter
        return self.session

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Outcome:
        from specx.cli.app import run

        if stdin is not None:
            self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self.monkeypatch.setattr("specx.cli.complete.stdin_is_piped", lambda: stdin is not None)
        code = run(arguments)
        out, err = self.capfd.readouterr()
        return Outcome(code, out, err)


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("SPECX_", "LLAMA_ARG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPECX_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def specx(capfd, monkeypatch, model):
    runner = Runner(capfd, monkeypatch, model)
    monkeypatch.setattr("specx.cli.complete.open_session", runner.open)
    monkeypatch.setattr("specx.cli.chat.open_session", runner.open)
    return runner


@pytest.fixture
def spawn():
    """Starts the command with the fake session in a process of its own."""
    started = []

    def start(*arguments, **options):
        environment = {**os.environ, **options.pop("env", {})}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": environment,
                "bufsize": 0,
                **options,
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
