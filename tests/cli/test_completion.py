from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SPECX = [sys.executable, "-P", "-m", "specx.cli"]
HEAVY = (
    "numpy",
    "llama_cpp",
    "gguf",
    "rich",
    "jinja2",
    "pydantic",
    "specx.cli.chat",
    "specx.cli.bench.command",
)


def completed(*words: str, shell: str = "bash", **env: str) -> list[str]:
    done = subprocess.run(
        [*SPECX, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "_SPECX_COMPLETE": shell, **env},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("comp",), ["complete", "completion"]),
        (("drafter", "t"), ["trim", "train"]),
        (("complete", "--dra"), ["--drafter", "--draft-max"]),
        (("complete", "--drafter", "re"), ["recycle"]),
        (("complete", "--drafter", "suffix,re"), ["suffix,recycle"]),
        (("complete", "--drafter", "=", "re"), ["recycle"]),
        (("complete", "--kernels", ""), ["auto", "specx", "attention", "stock"]),
        (("complete", "-ctk", "q8"), ["q8_0"]),
        (("complete", "-ctvd", "iq"), ["iq4_nl"]),
        (("complete", "--server", "n"), ["no"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("bench", "--drafter", "none,su"), ["none,suffix"]),
        (("bench", "--kernels", "at"), ["attention"]),
        (("bench", "-o", "j"), ["json", "jsonl"]),
        (("bench", "--suite", "ch"), ["chat"]),
        (("show", "-ctk", "q8"), ["q8_0"]),
        (("cache", "clear", "da"), ["damaged"]),
        (("complete", "-f", ""), []),  # the shell knows files
    ],
)
def test_what_a_word_may_become(words, found):
    assert completed(*words) == found


def test_models_by_their_names(tmp_path):
    for name in ("tiny-q8.gguf", "tiny-q4.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    asked = (("complete", "ti"), ("chat", "-m", "ti"), ("complete", "-md", "ti"), ("show", "ti"))
    for words in (*asked, ("drafter", "list", "ti"), ("drafter", "trim", "x", "--for", "ti")):
        assert completed(*words, LLAMA_CACHE=str(tmp_path)) == ["tiny-q4.gguf", "tiny-q8.gguf"]


def test_what_the_configuration_names(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "tiny-q8.gguf").write_bytes(b"GGUF")
    settings = 'models = ["%s"]\n[aliases]\ntiny = "x"\n[profiles.poet]\ntemp = 1.2\n' % (tmp_path / "models")
    (tmp_path / "mine.toml").write_text(settings)
    known = {"SPECX_CONFIG": str(tmp_path / "mine.toml")}
    assert completed("complete", "--profile", "p", **known) == ["poet"]
    assert completed("show", "mi", **known) == ["mine/tiny-q8"]
    assert completed("chat", "ti", **known) == ["tiny"]


def test_shells_are_told_more_in_their_own_form():
    assert completed("show", "--li", shell="fish") == ["--list\tEvery model found on this machine."]
    assert completed("show", "--li", shell="zsh") == ["--list:Every model found on this machine."]
    assert "chat\tTalk to a model." in completed("", shell="fish")


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from specx.cli.app import run; run(['complete', '--drafter', '']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "_SPECX_COMPLETE": "bash"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == "[]\n" and "auto" in done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one(specx, shell, tmp_path):
    outcome = specx("completion", shell)
    assert (outcome.code, outcome.err) == (0, "") and "_SPECX_COMPLETE" in outcome.out
    if shutil.which(shell) is not None:
        path = tmp_path / "script"
        path.write_text(outcome.out)
        subprocess.run([shell, "-n", str(path)], check=True)


def test_another_shell(specx):
    wrong = specx("completion", "tcsh")
    assert wrong.code == 2 and "allowed are bash, zsh, fish" in wrong.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(specx, tmp_path):
    command = tmp_path / "bin" / "specx"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(SPECX)} "$@"\n')
    command.chmod(0o755)
    script = specx("completion", "bash").out + (
        "COMP_WORDS=(specx complete --drafter re); COMP_CWORD=3; _specx_completion\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    bash = ["bash", "--norc", "-c", script]
    done = subprocess.run(bash, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "recycle\n"
