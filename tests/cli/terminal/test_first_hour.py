"""What somebody meets in the first hour, on a terminal of 80 columns."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specx.backends.store import Store

SPECX = ("-P", "-m", "specx.cli")
LOADING = (str(Path(__file__).with_name("loading_specx.py")),)


def started(program, *arguments, env, **options):
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **env}, bufsize=0, **options)


@pytest.fixture
def real(open_terminal):
    """Starts specx itself on a terminal."""
    return lambda *arguments, **env: open_terminal(started, SPECX, *arguments, **env)


def shown(terminal) -> list[str]:
    """The lines that a command leaves when it has ended in order."""
    terminal.until_end()
    assert terminal.process.returncode == 0, terminal.shown
    return [line for line in terminal.lines() if line]


@pytest.mark.parametrize("command", [(), ("drafter",), ("cache",)])
def test_the_commands_are_described_in_whole_sentences(real, command):
    lines = shown(real(*command))
    listed = lines[lines.index("Commands:") + 1 :]
    assert max(map(len, lines)) <= 80 and not any("..." in line for line in listed)
    first = [line for line in listed if re.match(r"  \w", line)]
    assert len(first) >= 4
    said = " ".join(" ".join(listed).split())
    assert said.count(".") >= len(first)


def test_of_each_model_the_name_is_whole(real, smollm2):
    name, path = smollm2.stem, str(smollm2)
    lines = shown(real("show", "--list", SPECX_MODELS=str(smollm2.parent)))
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if name in line)
    assert row.startswith(f"{name} ")
    at = lines[0].index("path")
    below = lines[lines.index(row) :]
    assert "".join(line[at:] for line in below).replace(" ", "").startswith(path[:20])


def test_what_drafts_here_names_the_model_as_it_was_typed(real, smollm2):
    lines = shown(real("drafter", "list"))
    assert lines[-1].endswith("specx plan") and "quiet machine" in " ".join(lines[-2:])
    lines = shown(real("drafter", "list", smollm2))
    assert " ".join(lines).replace(" ", "").endswith(f"specxplan{smollm2}")


def test_how_well_a_model_could_draft(real, smollm2, smollm2_q4_0):
    lines = shown(real("drafter", "inspect", smollm2, smollm2_q4_0))
    assert max(map(len, lines)) <= 80
    labels = ["target", "draft", "common tokens", "one to one", "draft tokens", "lost", "memory", "right"]
    assert [line[:15].rstrip() for line in lines if line[:15].strip()] == [*labels, "predicted"]
    assert all(line[15] != " " for line in lines)
    assert lines[2] == "common tokens  100% of the target's, by their bytes"


def test_a_certificate(real, smollm2, tmp_path):
    (tmp_path / "prompts.txt").write_text("One two three\n")
    few = ("--prompts", tmp_path / "prompts.txt", "-n", "2", "-c", "512", "--kernels", "specx")
    lines = shown(real("verify", smollm2, *few, "--drafter", "suffix"))
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert "━" not in text  # the bars are gone
    assert "accepting a branch of a tree " in text and "drafter temperature" in " ".join(text.split())
    assert lines[-1].startswith("verdict: exact")


def test_the_first_lines_of_a_benchmark(real, smollm2, tmp_path):
    (tmp_path / "suite.jsonl").write_text(
        '{"id": "a", "category": "code", "text": "one two three one two"}\n'
    )
    few = ("--suite", tmp_path / "suite.jsonl", "-n", "8", "-r", "1", "-c", "512", "--kernels", "specx")
    lines = shown(real("bench", smollm2, *few, "--drafter", "suffix"))
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"1 answer by 2 arms: about \d+ s( .*)?", lines[0]) or "measured" in lines[0]
    at = next(i for i, line in enumerate(lines) if line.startswith("model    "))
    head = lines[at:]
    assert any(line.startswith("machine  ") for line in head)
    assert any(line.startswith("run      1 prompt, 1 round, at most 8 tokens, cold caches") for line in head)
    assert any(line.startswith("         temperature 0, seed 1, context 512, ") for line in head)


def test_a_training(real, tmp_path, write_tiny):
    pytest.importorskip("torch")
    target = write_tiny(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "text.txt").write_text("w1 w2 w3 w5 w8 " * 700)
    few = ("--data", tmp_path / "text.txt", "--self", "0", "--vocab", "288", "-t", "1", "--steps", "3")
    lines = shown(real("drafter", "train", target, *few))
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert re.search(r"learned from [\d,]+ tokens .*; scores 288 tokens on text it has not seen", text)
    assert re.search(r"\d\.\d\d tokens a step", text) and "written: " in text
    assert not any("━" in line for line in lines)  # the bars are gone


@pytest.mark.parametrize("command", ["complete", "serve"])
def test_ctrl_c_while_a_model_is_loaded_leaves_nothing_behind(open_terminal, tmp_path, command):
    (path := tmp_path / "a-model-with-a-name-that-takes-half-of-a-line.gguf").write_bytes(b"GGUF")
    options = ("-p", "x") if command == "complete" else ("--port", "0")
    terminal = open_terminal(started, LOADING, command, path, *options)
    terminal.until("%", 2)
    (bar,) = (line for line in terminal.lines() if line.startswith("loading "))
    assert len(bar) <= 76  # there is room for ^C
    terminal.type("\x03")
    terminal.until("^C")
    terminal.process.send_signal(signal.SIGINT)  # this is not the terminal that controls it
    terminal.until_end()
    assert terminal.process.returncode == 130
    left = [line for line in terminal.lines() if line and not line.startswith("http://")]
    assert left == []
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")  # the cursor is back


def test_a_chat_says_how_to_learn_more(open_terminal, spawn, model):
    terminal = open_terminal(spawn, "chat", model)
    terminal.type("/bye\r", after=1)
    assert "/help lists the commands, Ctrl-D leaves" in shown(terminal)[:4]


def test_entries_of_models_of_one_name_are_told_apart(real, tmp_path):
    store = Store(tmp_path / "cache")
    for letter in "ab":
        store.save_json("model", letter * 32, {"name": "One", "path": f"/models/{letter}.gguf"})
    typed = tmp_path / "cache" / "history" / "chat.txt"
    typed.parent.mkdir()
    typed.write_text("# 1\n+Hello\n")
    lines = shown(real("cache", "show"))
    assert re.fullmatch(r".*: [\d,]+ bytes", " ".join(lines[: lines.index(header(lines))]))
    models = {line.split()[-1] for line in lines if line.startswith("model")}
    assert models == {"a.gguf", "b.gguf"}
    assert any(line.endswith("(what was typed in chats)") for line in lines)
    assert shown(real("cache", "show", "--text")) == []


def header(lines) -> str:
    return next(line for line in lines if line.startswith("kind "))


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("complete", "-p", "x", "-n", "many"), {}, "-n/--n-predict is 'many' hint: give a whole number"),
        (
            ("complete", "-p", "x"),
            {"SPECX_CTX_SIZE": "abc"},
            "-c/--ctx-size is 'abc' (from SPECX_CTX_SIZE) hint: give a whole number",
        ),
        (
            ("complete", "-p", "x"),
            {"LLAMA_ARG_TEMPERATURE": "w"},
            "--temp is 'w' (from LLAMA_ARG_TEMPERATURE) hint: give a number",
        ),
        (("verify", "-n", "0"), {}, "-n/--n-predict is 0 hint: give a number of at least 1"),
    ],
)
def test_what_is_no_number_is_called_that(real, arguments, variables, said):
    terminal = real(*arguments, **variables)
    terminal.until_end()
    assert terminal.process.returncode == 2
    assert said in " ".join(" ".join(terminal.lines()).split())
