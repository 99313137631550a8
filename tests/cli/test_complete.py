from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from specx.backends.errors import RollbackError

PATIENCE = 240  # seconds that a process may take on a busy machine
TEXT = "Hello wörld, how are you?"
TIMINGS = {
    "prompt_n",
    "prompt_ms",
    "prompt_per_second",
    "predicted_n",
    "predicted_ms",
    "predicted_per_second",
    "draft_n",
    "draft_n_accepted",
    "steps",
    "host_ms",
    "draft_ms",
    "explored_ms",
    "overhead_ms",
}


def test_the_text_and_nothing_else_is_on_stdout(specx):
    outcome = specx("complete", specx.model, "-p", "Once")
    assert (outcome.code, outcome.out) == (0, TEXT)
    assert specx.session.prompts == ["<s>Once"]
    assert specx.session.closed
    assert "seed: 77" in outcome.err and "100.0 tokens/s" in outcome.err and "33%" in outcome.err


def test_quiet_says_nothing_more(specx):
    assert specx("complete", specx.model, "-p", "Once", "-q").err == ""


def test_json_is_one_object(specx):
    outcome = specx("complete", specx.model, "-p", "Once", "--json", "-s", "5", "--drafter", "suffix")
    whole = json.loads(outcome.out)
    assert set(whole) == {"text", "tokens", "finish_reason", "seed", "drafter", "model", "setup", "timings"}
    assert set(whole["timings"]) == TIMINGS
    assert whole["text"] == TEXT
    assert (whole["seed"], whole["drafter"], whole["model"]) == (5, "suffix", "fake")
    assert whole["finish_reason"] == "stop" and whole["tokens"] == list(range(7))
    assert outcome.out.count("\n") == 1 and "wörld" in outcome.out
    assert outcome.err == ""


def test_stream_json_is_a_line_for_each_step(specx):
    outcome = specx("complete", specx.model, "-p", "Once", "--stream-json")
    *steps, last = map(json.loads, outcome.out.splitlines())
    assert "".join(step["text"] for step in steps) == last["text"] == TEXT
    assert [step["done"] for step in steps] == [False] * 7 and last["done"] is True
    assert [token for step in steps for token in step["tokens"]] == last["tokens"]
    assert set(last["timings"]) == TIMINGS


def test_the_parts_of_a_prompt_come_in_order(specx, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("from the file\n")
    specx("complete", "-m", specx.model, "-f", str(file), "-p", "argument", stdin=b"piped\n")
    assert specx.session.prompts == ["<s>piped\nfrom the file\nargument"]
    specx("complete", "-m", specx.model, "-f", "-", stdin="Ünïcode\n\n".encode())
    assert specx.session.prompts[-1] == "<s>Ünïcode\n"


def test_escapes_are_resolved_on_request(specx):
    specx("complete", specx.model, "-p", r"a\nb\\n")
    specx("complete", specx.model, "-e", "-p", r"a\nb\\n\d")
    assert specx.session.prompts == ["<s>a\\nb\\\\n", "<s>a\nb\\n\\d"]


def test_chat_puts_the_prompt_into_the_template(specx):
    specx("complete", specx.model, "-p", "Once", "--chat")
    specx("complete", specx.model, "-p", "Once", "-sys", "Be brief")
    assert specx.session.prompts == ["<s>[user]Once[assistant]", "<s>[system]Be brief[user]Once[assistant]"]


def test_without_a_template_chat_is_chatml_and_says_so(specx):
    specx.session.chat_template = None
    outcome = specx("complete", specx.model, "-p", "Once", "--chat")
    assert "ChatML" in outcome.err
    assert specx.session.prompts == ["<s><|im_start|>user\nOnce<|im_end|>\n<|im_start|>assistant\n"]
    assert specx.session.requests[0]["stop"] == ("<|im_end|>",)


def test_what_a_context_shift_keeps(specx):
    for arguments in ([], ["--chat"], ["-sys", "Be brief"], ["--chat", "--keep", "2"]):
        assert specx("complete", specx.model, "-p", "hi", *arguments).code == 0
    opening = len("<s>[user]")
    kept = [request["keep"] for request in specx.session.requests]
    assert kept == [0, opening, opening + len("[system]Be brief"), 2]


def test_display_prompt(specx):
    assert specx("complete", specx.model, "-p", "Once: ", "--display-prompt").out == "Once: " + TEXT


def test_stops_and_limits_reach_the_session(specx):
    outcome = specx("complete", specx.model, "-p", "x", "-r", "how", "--stop", "zz", "--ignore-eos")
    assert outcome.out == "Hello wörld, "
    request = specx.session.requests[0]
    assert request["stop"] == ("how", "zz") and request["ignore_eos"] and request["n_predict"] == -1
    limited = specx("complete", specx.model, "-p", "x", "-n", "2", "--json")
    assert json.loads(limited.out)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("arguments", "longest"),
    [
        (["-n", "3"], len("Wörld".encode()) + 16 + 3),  # a token is a byte or more
        ([], None),
        (["-n", "3", "--chat"], None),  # templates add what they like
        (["-n", "3", "-sys", "Be brief."], None),
    ],
)
def test_how_long_a_text_can_get(specx, arguments, longest):
    assert specx("complete", specx.model, "-p", "Wörld", *arguments).code == 0
    assert specx.settings[-1].longest == longest


def test_a_grammar_from_a_file_or_a_schema(specx, tmp_path):
    file = tmp_path / "g.gbnf"
    file.write_text('root ::= "x"')
    assert specx("complete", specx.model, "-p", "x", "--grammar-file", str(file)).code == 0
    assert specx.session.requests[-1]["constraint"] == 'root ::= "x"'
    bad = specx("complete", specx.model, "-p", "x", "-j", "[1]")
    assert bad.code == 2 and "error: the JSON schema is not a JSON object" in bad.err
    both = specx("complete", specx.model, "-p", "x", "--grammar", "root", "-j", "{}")
    assert both.code == 2 and "more than one grammar" in both.err
    assert specx("complete", specx.model, "-p", "x", "--grammar", "zzz").code == 2
    file.write_bytes(b'root ::= "caf\xe9"')
    bad = specx("complete", specx.model, "-p", "x", "--grammar-file", str(file))
    assert bad.code == 2 and "g.gbnf is not valid UTF-8: byte 0xe9 at offset 13" in bad.err


def test_a_schema_becomes_a_grammar(specx):
    schema = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    assert specx("complete", specx.model, "-p", "x", "-j", schema).code == 0
    assert "root ::=" in specx.session.requests[-1]["constraint"]
    assert specx("complete", specx.model, "-p", "x", "-j", "{}").code == 0


def test_the_command_line_is_utf_8_in_a_locale_that_knows_only_ascii(specx):
    passed = "é 😀".encode().decode("ascii", "surrogateescape")  # as Python reads it there
    schema = json.dumps({"const": "é"}, ensure_ascii=False).encode().decode("ascii", "surrogateescape")
    assert specx("complete", specx.model, "-p", passed, "-j", schema, "-r", passed).code == 0
    request = specx.session.requests[-1]
    assert request["stop"] == ("é 😀",) and "\\u00E9" in request["constraint"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), None, "the prompt is empty"),
        (("-p", ""), None, "the prompt is empty"),
        ((), b"\n", "the prompt is empty"),
        ((), b"ab\xff", "standard input is not valid UTF-8: byte 0xff at offset 2"),
        (
            ("-p", "a\udcffb"),
            None,
            "--prompt on the command line is not valid UTF-8: byte 0xff at character 1",
        ),
        (("-p", "x", "-sys", "\udce9"), None, "--system-prompt on the command line is not valid UTF-8"),
        (("-p", "x", "-r", "ok", "-r", "\udce9"), None, "--stop on the command line is not valid UTF-8"),
        (
            ("-p", "x", "--grammar", 'root ::= "\udce9"'),
            None,
            "--grammar on the command line is not valid UTF-8",
        ),
        (
            ("-p", "x", "-j", '"\ud83d"'),
            None,
            "--json-schema on the command line is not valid UTF-8: surrogate",
        ),
        (("-p", "x", "-j", "[" * 50_000), None, "the JSON schema is nested more than 100 deep"),
        (("-p", "x", "--grammar", 'root ::= "a"{3,2}'), None, "the repetition {3,2} in the grammar ends"),
        (
            ("-p", "x", "-j", '{"contains": {"type": "null"}}'),
            None,
            "the JSON schema uses contains (its root)",
        ),
        (("-p", "x", "--json", "--stream-json"), None, "--json and --stream-json"),
        (("-p", "x", "-l", "1000+1"), None, "names token 1000"),
    ],
)
def test_wrong_usage(specx, arguments, stdin, message):
    outcome = specx("complete", specx.model, *arguments, stdin=stdin)
    assert outcome.code == 2
    assert outcome.out == ""
    assert f"error: {message}" in outcome.err or message in outcome.err
    assert "Traceback" not in outcome.err
    assert specx.session.prompts == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-f", "nowhere.txt"), "cannot read nowhere.txt: No such file"),
        (("-p", "x", "--grammar-file", "nowhere.gbnf"), "cannot read nowhere.gbnf"),
        (("-p", "x", "-o", "no/such/folder/file"), "there is no folder"),
    ],
)
def test_what_is_missing_is_no_wrong_usage(specx, arguments, message):
    outcome = specx("complete", specx.model, *arguments)
    assert (outcome.code, outcome.out) == (1, "") and f"error: {message}" in outcome.err
    assert specx.session.prompts == []


def test_output_is_a_file_written_whole(specx, tmp_path):
    path = tmp_path / "out.txt"
    outcome = specx("complete", specx.model, "-p", "x", "-o", str(path))
    assert outcome.out == "" and path.read_text() == TEXT
    specx("complete", specx.model, "-p", "x", "--json", "-o", str(path))
    assert json.loads(path.read_text())["text"] == TEXT
    before = path.read_text()
    specx.session.fails_at, specx.session.failure = 2, RollbackError("the cache is broken")
    assert specx("complete", specx.model, "-p", "x", "-o", str(path)).code == 1
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.suffix] == []


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_file_that_is_standard_output(specx, name):
    assert specx("complete", specx.model, "-p", "x", "-o", name).out == TEXT


def test_an_error_in_the_middle_keeps_what_was_written(specx):
    specx.session.fails_at, specx.session.failure = 2, RollbackError("the cache is broken", "try again")
    outcome = specx("complete", specx.model, "-p", "x")
    assert (outcome.code, outcome.out) == (1, "Hello wörld")
    assert "error: the cache is broken\nhint: try again\n" in outcome.err


def interrupt(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr.readline() == b"loading\n"
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)


def test_ctrl_c_keeps_what_was_written(spawn, model):
    process = spawn("complete", model, "-p", "x", env={"FAKE_ENDLESS": "1", "FAKE_DELAY": "0.05"})
    interrupt(process)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert ("H" + out.decode()).startswith("Hello")
    assert b"Traceback" not in err and b"seed: 77" in err


def test_ctrl_c_with_json_still_gives_the_object(spawn, model):
    environment = {"FAKE_ENDLESS": "1", "FAKE_DELAY": "0.05"}
    process = spawn("complete", model, "-p", "x", "--stream-json", env=environment)
    interrupt(process)
    out, _err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    last = json.loads(out.splitlines()[-1])
    assert last["done"] and last["finish_reason"] == "cancelled" and last["text"].startswith("Hello")


def test_ctrl_c_while_loading(spawn, model):
    process = spawn("complete", model, "-p", "x", env={"FAKE_LOADING": "60"})
    assert process.stderr.readline() == b"loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 130


def test_a_second_ctrl_c_ends_at_once(spawn, model):
    process = spawn("complete", model, "-p", "x", env={"FAKE_ENDLESS": "1", "FAKE_DELAY": "600"})
    interrupt(process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    while process.poll() is None:  # on a busy machine the first one may still be on its way
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and b"Traceback" not in err


def test_a_closed_pipe_is_no_traceback(spawn, model):
    process = spawn("complete", model, "-p", "x", env={"FAKE_ENDLESS": "1"})
    assert process.stdout.read(5) == b"Hello"
    process.stdout.close()
    process.stdout = None
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 141
    assert err == b"loading\nloaded\n"


def test_standard_input_that_is_no_pipe_is_not_read(spawn, model):
    process = spawn("complete", model, "-p", "x", "-q", stdin=subprocess.DEVNULL)
    assert process.communicate(timeout=PATIENCE) == (TEXT.encode(), b"loading\n")
    process = spawn("complete", model, "-q", "-p", "tail", "--display-prompt", stdin=subprocess.PIPE)
    assert process.communicate(b"head\n", timeout=PATIENCE)[0].startswith(b"head\ntail")


def test_an_encoding_that_lacks_a_letter_does_not_end_the_text(spawn, model):
    process = spawn("complete", model, "-p", "x", "-q", env={"PYTHONIOENCODING": "ascii"})
    out, _err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and out == b"Hello w?rld, how are you?"


@pytest.mark.skipif(sys.platform == "win32", reason="file modes")
def test_a_written_file_keeps_its_mode(specx, tmp_path):
    path = tmp_path / "out.txt"
    path.touch(0o600)
    specx("complete", specx.model, "-p", "x", "-o", str(path))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("arguments", "measure"), [((), True), (("-n", "5"), True), (("-n", "0"), False)])
def test_nothing_is_measured_where_nothing_is_decoded(specx, arguments, measure):
    assert specx("complete", specx.model, "-p", "x", *arguments).code == 0
    assert specx.settings[-1].measure is measure


def test_input_beside_a_prompt_is_told(specx):
    outcome = specx("complete", specx.model, "-p", "argument", stdin="réd\n".encode())
    assert specx.session.prompts == ["<s>réd\nargument"]
    assert (
        outcome.err.startswith("5 bytes of standard input come before the prompt")
        and "</dev/null" in outcome.err
    )
    assert "bytes" not in specx("complete", specx.model, "-p", "x", "-q", stdin=b"red\n").err
    assert "bytes" not in specx("complete", specx.model, stdin=b"red\n").err
    assert "bytes" not in specx("complete", specx.model, "-p", "x", stdin=b"").err


def test_a_pipe_that_stays_open_is_told_to_be_waited_for(spawn, model):
    process = spawn("complete", model, "-p", "x", stdin=subprocess.PIPE)
    assert process.stderr.readline().startswith(b"waiting for the end of standard input")
    out, _err = process.communicate(b"red\n", timeout=PATIENCE)
    assert (process.returncode, out) == (0, TEXT.encode())


def test_a_limit_that_ended_the_text_is_told(specx):
    assert "2 tokens (the most that -n allows), " in specx("complete", specx.model, "-p", "x", "-n", "2").err
    assert "-n" not in specx("complete", specx.model, "-p", "x").err


@pytest.mark.parametrize(("reason", "code"), [("stop", 0), ("context", 3), ("cancelled", 130)])
def test_a_text_that_was_cut_off_before_it_matched_has_its_own_exit_code(specx, model, reason, code):
    specx.session.finish_reason = reason
    outcome = specx("complete", specx.model, "-p", "x", "--grammar", 'root ::= "x"', "-q")
    assert (outcome.code, "cut off before it matched" in outcome.err) == (code, code == 3)
    assert specx("complete", specx.model, "-p", "x", "-q").code == (0 if code == 3 else code)


def test_a_limit_below_a_schema_is_told_in_json_too(specx):
    outcome = specx("complete", specx.model, "-p", "x", "--json-schema", "{}", "-n", "2", "--json", "-q")
    assert (outcome.code, json.loads(outcome.out)["finish_reason"]) == (3, "length")


def test_escapes_reach_stop_strings(specx):
    specx("complete", specx.model, "-p", "x", "-e", "-r", r"a\nb")
    assert specx.session.requests[-1]["stop"] == ("a\nb",)
    specx("complete", specx.model, "-p", "x", "-r", r"a\nb")
    assert specx.session.requests[-1]["stop"] == (r"a\nb",)


def test_draft_models_that_can_give_nothing_are_told(specx, tmp_path):
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    other = str(tmp_path / "small.gguf")
    told = specx("complete", specx.model, "-p", "x", "-md", other, "--drafter", "none").err
    assert "--drafter none: the draft model small.gguf is not used" in told
    assert (
        "the draft model is the model itself"
        in specx("complete", specx.model, "-p", "x", "-md", specx.model).err
    )
    assert "draft model" not in specx("complete", specx.model, "-p", "x", "-md", other).err


def test_an_option_that_was_taken_for_a_value_is_named(specx):
    outcome = specx("complete", specx.model, "-fa", "-p", "hello")
    assert outcome.code == 2 and "-fa took -p for its value" in outcome.err


@pytest.mark.parametrize("where", [["--drafter", "model"], ["--drafter=model"], None])
def test_a_value_that_is_called_like_an_argument_is_a_value(specx, monkeypatch, where):
    if where is None:
        monkeypatch.setenv("SPECX_DRAFTER", "model")
    outcome = specx("complete", specx.model, "-p", "x", *(where or []))
    assert outcome.code == 0 and specx.session.drafter_name == "model"
