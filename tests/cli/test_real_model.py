"""The whole program with a small real model, each time in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from specx.backends.llama import kernels as ggml_device

# One thread: with more, a busy machine makes them wait for each other at every step. With a KV cache in f16
# a near-tie may fall the other way when other drafts are verified, and those depend on measured times.
SMALL = ("-c", "256", "-t", "1", "-tb", "1", "-ctk", "q8_0", "-ctv", "q8_0")
STORY = "Once upon a time there was a fox and a hen. Once upon a time there was"
USUAL = ("complete", "-p", STORY, "-n", 12, "--temp", 0, *SMALL)
PATIENCE = 240


@dataclass
class Done:
    code: int
    out: str
    err: str


class Specx:
    """Runs `specx` on one model and one store, with nothing on standard input unless it is given."""

    def __init__(self, model: Path, store: Path) -> None:
        self.model, self.store = model, store
        self.usual = Done(-1, "", "")

    def start(self, *arguments: object, env: dict[str, str | None] | None = None, **options):
        environment = {
            **os.environ,
            "SPECX_MODEL": str(self.model),
            "SPECX_CACHE": str(self.store),
            "SPECX_KERNELS": "stock",  # beside other work they would be compared in every process anew
            **(env or {}),
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "specx.cli", *map(str, arguments)],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": {name: value for name, value in environment.items() if value is not None},
                **options,
            },
        )

    def __call__(self, *arguments: object, stdin: bytes | None = None, env=None) -> Done:
        with_input = {} if stdin is None else {"stdin": subprocess.PIPE}
        return finish(self.start(*arguments, env=env, **with_input), stdin)


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Done:
    try:
        out, err = process.communicate(stdin, timeout=PATIENCE)
    finally:
        process.kill()
    done = Done(process.returncode, (out or b"").decode(), (err or b"").decode())
    assert "Traceback" not in done.err and "unexpected" not in done.err, done.err
    return done


def failed(done: Done, code: int, message: str, hint: str = "") -> None:
    """It ended with one error and one hint, and nothing on stdout."""
    assert (done.code, done.out) == (code, ""), done
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], done.err
    assert sum(line.startswith(("error:", "hint:")) for line in lines) == 2
    assert message in lines[-2] and hint in lines[-1], done.err


@pytest.fixture(scope="module")
def specx(smollm2, tmp_path_factory) -> Specx:
    """With a store in which this model has been measured as the tests run it."""
    program = Specx(smollm2, tmp_path_factory.mktemp("measured"))
    program.usual = program(*USUAL)
    assert program.usual.code == 0, program.usual.err
    return program


# --- files that are no model --------------------------------------------------------------------------------


def test_an_unknown_name(specx):
    failed(
        specx("complete", "nosuch", "-p", "x"), 1, "no file and no model here is called 'nosuch'", "--list"
    )
    failed(specx("complete", "", "-p", "x"), 2, "the name of the model is empty", "--list")


def test_files_that_are_no_model(specx, tmp_path):
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "random.gguf").write_bytes(os.urandom(5000))
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><title>404</title>")
    for name, message, hint in (
        ("empty.gguf", "empty.gguf is empty", "specx pull"),
        ("random.gguf", "is not a GGUF file", "specx pull"),
        ("page.gguf", "it is a web page", "specx pull"),
        (".", "holds several models", "one of: page.gguf, random.gguf"),
        ("/dev/null", "/dev/null is not a regular file", ".gguf"),
    ):
        failed(specx("complete", tmp_path / name, "-p", "x"), 1, message, hint)


def test_a_model_cut_anywhere(specx, tmp_path):
    whole = specx.model.stat().st_size
    with specx.model.open("rb") as file:
        head = file.read(4 << 20)
    tokens, merges, tensors = (
        head.index(mark) for mark in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges", b"blk.0.")
    )
    path = tmp_path / "cut.gguf"
    for size in (
        3,
        4,
        20,
        200,
        tokens + 10,
        tokens + 40_000,
        merges + 40_000,
        tensors + 20,
        whole // 2,
        whole - 1,
    ):
        path.write_bytes(head[:size])
        os.truncate(path, size)  # the tensors are zeros: only where the file ends matters
        message = "is not a GGUF file" if size < 4 else "is cut short"
        failed(specx("complete", path, "-p", "x"), 1, message, "download it again")


def test_another_ending_of_the_name(specx, tmp_path):
    (tmp_path / "model.bin").symlink_to(specx.model)
    assert specx("complete", tmp_path / "model.bin", "-p", "x", "-n", 2, *SMALL).code == 0


def test_a_llama_cpp_that_is_not_there(specx, tmp_path):
    done = specx("complete", "-p", "x", env={"LLAMA_CPP_LIB_PATH": str(tmp_path)})
    failed(done, 1, "llama.cpp cannot be loaded", "LLAMA_CPP_LIB_PATH")


# --- prompts and streams ------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_used(specx, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text(STORY * 40)
    failed(specx("complete", "-f", long, *SMALL), 1, "tokens and the context holds 256", "-c 1024")
    failed(specx("complete", stdin=b"ab\xff"), 2, "standard input is not valid UTF-8: byte 0xff at offset 2")
    failed(specx("complete", stdin=b""), 2, "the prompt is empty", "-p")
    failed(specx("complete", "-f", tmp_path / "none"), 1, "cannot read", "check its name")


def test_tiny_limits(specx):
    assert specx("complete", "-p", "x", "-n", 0, *SMALL).out == ""
    assert specx("complete", "-p", "x", "-n", 4, "-c", 8, "-t", 1, "--drafter", "none").code == 0


def test_a_reader_that_leaves(specx):
    for command in (("complete", "-p", STORY, *SMALL), ("show", "--tensors")):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            done = finish(specx.start(*command, stdout=pipe))
        assert done.code == 141 and "error" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_streams_that_take_nothing(specx):
    with open("/dev/full", "wb") as full:
        done = finish(specx.start("complete", "-p", "x", "-n", 2, *SMALL, stdout=full))
        assert done.code == 1 and "error: the output cannot be written: No space" in done.err
        done = finish(specx.start("complete", "-p", "x", "-n", 2, *SMALL, stderr=full))
        assert done.code == 0 and done.out


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def wait_until(process: subprocess.Popen[bytes], condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "command", [("complete", "-p", "x"), ("plan", "--refresh"), ("probe", "--refresh"), ("verify",)]
)
def test_ctrl_c_while_loading(specx, command):
    process = specx.start(*command, *SMALL)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(process, lambda: specx.model.name.encode() in maps.read_bytes())
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130 and "error" not in done.err and "ignored" not in done.err


def test_ctrl_c_while_reading_the_prompt(specx, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text(STORY * 110)
    process = specx.start("complete", "-f", long, "--json", "--no-cache", "-c", 4096, "-t", 1, "-tb", 1)
    while b"measured" not in (line := process.stderr.readline()):
        assert line, "nothing was measured"
    process.send_signal(signal.SIGINT)
    done = finish(process)
    result = json.loads(done.out)
    assert (done.code, result["finish_reason"]) == (130, "cancelled")


def test_ctrl_c_keeps_the_text(specx, tmp_path):
    path = tmp_path / "out.txt"
    process = specx.start("complete", "-p", STORY, "--ignore-eos", "--context-shift", "--stream-json", *SMALL)
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    done = finish(process)
    steps = [first, *map(json.loads, done.out.splitlines())]
    assert done.code == 130
    assert steps[-1]["done"] and steps[-1]["finish_reason"] == "cancelled"
    assert "".join(step["text"] for step in steps[:-1]) == steps[-1]["text"] != ""
    assert not path.exists()


# --- where things are kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "/dev/null/nobody"])
def test_no_home_directory(specx, home):
    env = {"HOME": home, "SPECX_CACHE": "/dev/null/cache" if home else str(specx.store)}
    done = specx("complete", "-p", "x", "-n", 2, "--drafter", "none", *SMALL, env=env)
    assert done.code == 0 and done.out
    assert done.err.count("the cache cannot be") == (1 if home else 0)


def test_damaged_entries_are_set_aside(specx, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(specx.store, store)
    entries = [path for path in store.rglob("*") if path.is_file()]
    for number, path in enumerate(entries):
        path.write_bytes((b"", b"\0garbage", path.read_bytes()[:40])[number % 3])
    done = Specx(specx.model, store)(*USUAL)
    assert (done.code, done.out) == (0, specx.usual.out)
    assert "set aside" in done.err
    assert any(path.name.endswith(".damaged") for path in store.rglob("*"))


def test_two_processes_share_a_store(specx, tmp_path):
    two = Specx(specx.model, tmp_path / "store")
    shutil.copytree(specx.store, two.store)
    first, second = two.start(*USUAL), two.start(*USUAL)
    for done in (finish(first), finish(second)):
        assert (done.code, done.out) == (0, specx.usual.out)
    kinds = {entry["kind"] for entry in json.loads(two("cache", "show", "--json").out)["entries"]}
    assert {"history", "calibration"} <= kinds  # and a staircase, unless the machine was too busy
    assert "set aside" not in two(*USUAL).err
    assert two("cache", "clear").code == 0
    assert json.loads(two("cache", "show", "--json").out)["entries"] == []


# --- text ---------------------------------------------------------------------------------------------------


def test_the_seed_that_was_chosen_gives_the_same_text(specx):
    lines = specx("complete", "-p", STORY, "-n", 16, "--temp", 1, "--stream-json", *SMALL).out.splitlines()
    *steps, last = map(json.loads, lines)
    assert "".join(step["text"] for step in steps) == last["text"]
    assert [token for step in steps for token in step["tokens"]] == last["tokens"]
    assert len(last["tokens"]) == last["timings"]["predicted_n"] <= 16
    again = specx("complete", "-p", STORY, "-n", 16, "--temp", 1, "-s", last["seed"], *SMALL)
    assert again.out == last["text"]
    assert f"seed: {last['seed']}, " in again.err


def test_every_drafter_gives_the_same_text(specx):
    common = ("complete", "-p", STORY, "-n", 24, "--temp", 0.8, "-s", 7, "-q", *SMALL)
    texts = {specx(*common, "--drafter", name).out for name in ("none", "suffix", "recycle", "auto")}
    assert len(texts) == 1 and texts != {""}
    f16 = (*common, "-ctk", "f16", "-ctv", "f16")
    exact = [specx(*f16, "--exact", "--drafter", name) for name in ("none", "auto")]
    assert [done.code for done in exact] == [0, 0]
    assert exact[0].out == exact[1].out != ""


def test_verify(specx, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Count to five.\n")
    done = specx("verify", "--json", "--prompts", prompts, "-n", 4, "--kernels", "stock", *SMALL)
    report = json.loads(done.out)
    assert done.code == 0 and report["unexplained"] == 0
    assert report["compared"] == 3 * 3  # of auto, suffix and recycle: free would be auto once more
    assert report["branches_identical"] in (True, False)
    if ggml_device.unavailable() is None:
        done = specx("verify", "--prompts", prompts, "-n", 1, "--kernels", "specx", *SMALL)
        assert done.code == 0 and "accepting a branch of a tree leaves logits bit-identical" in done.out
        together = ("--parallel", 3, "--kernels", "specx", "--json")
        report = json.loads(specx("verify", "--prompts", prompts, "-n", 2, *together, *SMALL).out)
        assert (report["verdict"], report["texts"], report["compared"]) == ("exact", 3, 3 * 3 + 3 * 2)
        assert report["branches_identical"] is None  # several texts take chains
    prompts.write_text("\n")
    failed(specx("verify", "--prompts", prompts), 2, "holds no prompts")


def test_grammars_schemas_and_stops(specx):
    common = ("complete", "-p", "1 2 3 4 5", "-n", 32, "--temp", 0, "-q", *SMALL)
    assert specx(*common, "--grammar", 'root ::= " yes" | " no"').out in (" yes", " no")
    schema = '{"properties": {"say \\"hi\\"": {"enum": ["two\\nlines"]}}, "required": ["say \\"hi\\""]}'
    assert json.loads(specx(*common, "-j", schema).out) == {'say "hi"': "two\nlines"}
    once = json.loads(specx(*common, "--grammar", 'root ::= "yes"', "--ignore-eos", "--json").out)
    assert (once["text"], once["finish_reason"]) == ("yes", "stop") and len(once["tokens"]) <= 3
    failed(specx(*common, "--grammar", 'root ::= "a"{3,2}'), 2, "the repetition {3,2}", "smaller number")
    stopped = json.loads(specx(*common, "-r", " 8", "--json").out)
    assert (stopped["text"], stopped["finish_reason"]) == (" 6 7", "stop")
    failed(specx(*common, "--grammar", "root := "), 2, "the grammar cannot be used", "GBNF")


def test_a_full_context(specx):
    common = ("complete", "-p", STORY, "--temp", 0, "--ignore-eos", "--json", *SMALL)
    full = specx(*common)
    result = json.loads(full.out)
    assert (full.code, result["finish_reason"]) == (0, "context")
    assert result["timings"]["prompt_n"] + len(result["tokens"]) in (256, 257)
    assert "stopped: the context of 256 tokens is full" in full.err
    shifted = json.loads(specx(*common, "--context-shift", "-n", 300).out)
    assert (len(shifted["tokens"]), shifted["finish_reason"]) == (300, "length")
    assert shifted["tokens"][: len(result["tokens"])] == result["tokens"]


# --- chat ---------------------------------------------------------------------------------------------------


def test_a_scripted_chat_that_fills_its_context(specx, tmp_path):
    path = tmp_path / "talk.json"
    question = "Tell me everything about foxes, hens, " + "geese and ducks, " * 12 + "please."
    lines = f"/stats on\nHello\n{question}\n{question}\n{question}\n/save {path}\n".encode()
    common = ("chat", "-sys", "Be brief.", "-n", 24, "--temp", 0, *SMALL)
    done = specx(*common, stdin=lines)
    assert done.code == 1
    assert "error: with this message the conversation has" in done.err and "hint: /reset" in done.err
    kept = json.loads(path.read_text())
    assert [message["role"] for message in kept][:3] == ["system", "user", "assistant"]
    assert len(kept) < 9 and all(message["content"] for message in kept)
    assert "tokens/s" in done.err and "tokens/s" not in done.out

    done = specx(*common, "--context-shift", stdin=lines)
    assert done.code == 0 and "no longer shown to the model" in done.err
    kept = json.loads(path.read_text())
    assert [message["role"] for message in kept] == ["system", *["user", "assistant"] * 4]
    assert kept[0]["content"] == "Be brief."


def test_a_chat_in_a_terminal(specx, open_terminal):
    arguments = ("chat", "--temp", 0, "-n", 160, *SMALL)
    shell = open_terminal(specx.start, *arguments)
    shell.type("Write a long story.\r", after=1)
    shell.until("tokens/step")  # the status line: the answer has begun
    shell.process.send_signal(signal.SIGINT)
    shell.type('"""one\r', after=2)
    shell.type('two"""\r')
    shell.type("/stats off\r", after=3)
    shell.until("statistics are off")
    shell.type("/drafter suffix\r", after=4)
    shell.until("drafter suffix")
    shell.type("/bye\r", after=5)
    assert shell.process.wait(PATIENCE) == 0
    assert "error" not in shell.shown and "Traceback" not in shell.shown


def test_a_notice_never_lands_within_the_text(smollm2, tmp_path, open_terminal):
    fresh = Specx(smollm2, tmp_path / "store")
    arguments = ("complete", "-p", "The quick brown fox", "-n", 8, "--temp", 0, "--display-prompt", *SMALL)
    shell = open_terminal(fresh.start, *arguments, SPECX_KERNELS="auto")
    shell.until("seed: ")
    assert shell.process.wait(PATIENCE) == 0
    text = fresh(*arguments, env={"SPECX_KERNELS": "auto"}).out
    assert f"{text.rstrip()}" in shell.shown.replace("\r\n", "\n")
    # Where the machine is quiet, the steps are timed while kernels are compared.
    assert any(told in shell.shown for told in ("compared kernels in", "measured this model"))
