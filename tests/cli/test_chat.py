from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from types import SimpleNamespace

import pytest

from specx.backends.errors import RollbackError
from specx.cli.chat import Chat, Conversation
from specx.cli.generation import Request, summary
from specx.cli.options.read import GenerationOptions
from specx.cli.terminal.console import Progress
from specx.cli.terminal.lines import history_file
from specx.cli.terminal.markdown import finished
from specx.cli.terminal.typed import is_open, unwrap
from specx.engine.settings import SamplingSettings

PATIENCE = 240  # seconds that a process may take on a busy machine
TEXT = "Hello wörld, how are you?"


def chat(specx, lines: str, *arguments: str):
    return specx("chat", specx.model, *arguments, stdin=lines.encode())


def test_each_line_is_a_message_and_answers_are_on_stdout(specx):
    outcome = chat(specx, "one\n\ntwo\n")
    assert (outcome.code, outcome.out) == (0, f"{TEXT}\n{TEXT}\n")
    assert outcome.err.splitlines()[0] == "fake, drafter auto"
    assert "tokens/s" not in outcome.err
    assert specx.session.prompts == [
        "<s>[user]one[assistant]",
        f"<s>[user]one[assistant]{TEXT}[user]two[assistant]",
    ]


def test_a_first_message_and_a_system_message(specx):
    chat(specx, "two\n", "-p", "one", "-sys", "Be brief")
    assert specx.session.prompts[0] == "<s>[system]Be brief[user]one[assistant]"
    assert specx.session.prompts[1].endswith("[user]two[assistant]")


def test_several_lines_in_one_message(specx):
    chat(specx, '"""\nfirst\nsecond\n"""\nthird \\\nfourth\n"""one line"""\n')
    tails = [prompt.rpartition("[user]")[2] for prompt in specx.session.prompts]
    assert tails == ["first\nsecond[assistant]", "third \nfourth[assistant]", "one line[assistant]"]


@pytest.mark.parametrize(
    ("text", "still_open", "message"),
    [
        ("plain", False, "plain"),
        ("a\\", True, "a"),
        ("a\\\nb", False, "a\nb"),
        ('"""a', True, "a"),
        ('"""\na\n\n  b\n"""', False, "a\n\n  b"),
        ('say """ here', False, 'say """ here'),
        ('""""""', False, ""),
    ],
)
def test_when_a_message_goes_on(text, still_open, message):
    assert is_open(text) is still_open
    assert unwrap(text) == message


def test_statistics_on_request(specx):
    outcome = chat(specx, "one\n/stats off\ntwo\n/stats\n/stats maybe\n", "--stats")
    assert outcome.err.count("7 tokens, 100.0 tokens/s, 1.00 tokens/step, 33% of drafts accepted (auto)") == 2
    assert "seed: 77" in outcome.err
    assert "error: /stats is 'maybe'\nhint: allowed are on and off" in outcome.err


def test_a_step_that_found_the_end_only_is_explained():
    assert "0.75 tokens/step (the last step found the end of the text), " in summary(3, 1.0, 4, 0, 0, "none")
    assert "1.00 tokens/step, " in summary(3, 1.0, 3, 0, 0, "none")


def test_commands(specx):
    outcome = chat(
        specx, "/help\none\n/reset\n/system Be kind\ntwo\n/drafter none\n/drafter magic\n/hlep\n/bye\nthree\n"
    )
    assert outcome.code == 1
    assert specx.session.prompts[-1] == "<s>[system]Be kind[user]two[assistant]"
    assert len(specx.session.prompts) == 2
    assert "/regenerate" in outcome.err
    assert "fake, drafter none" in outcome.err
    assert "error: unknown drafter 'magic'" in outcome.err
    assert "error: there is no command /hlep\nhint: did you mean /help?" in outcome.err


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "exit"])
def test_ways_to_leave(specx, word):
    assert chat(specx, f"{word}\none\n").code == 0
    assert specx.session.prompts == []


def test_what_other_programs_call_commands(specx):
    outcome = chat(specx, "one\n/clear\ntwo\n/regen\n/?\n/set temperature 0\n/model other\n/bye\n")
    assert specx.session.prompts == [
        "<s>[user]one[assistant]",
        "<s>[user]two[assistant]",
        "<s>[user]two[assistant]",
    ]
    assert "leave (also /exit" in outcome.err
    assert "there is no command /set\nhint: /system TEXT sets the system message" in outcome.err
    assert "there is no command /model\nhint: leave with /bye" in outcome.err


def test_save_and_load(specx, tmp_path):
    path = tmp_path / "talk.json"
    chat(specx, f"one\n/save {path}\n", "-sys", "Be brief")
    assert json.loads(path.read_text()) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": TEXT},
    ]
    chat(specx, f"/load {path}\ntwo\n")
    assert specx.session.prompts[-1] == (f"<s>[system]Be brief[user]one[assistant]{TEXT}[user]two[assistant]")


@pytest.mark.parametrize(
    "content", ["{", "{}", '[{"role": "user"}]', '[{"role": "x", "content": "y"}]', None]
)
def test_a_file_that_is_no_conversation_changes_nothing(specx, tmp_path, content):
    path = tmp_path / "talk.json"
    if content is not None:
        path.write_text(content)
    outcome = chat(specx, f"one\n/load {path}\ntwo\n/load\n/save {tmp_path}/no/folder/x\n")
    assert outcome.err.count("error: ") == 3
    assert specx.session.prompts[-1].startswith("<s>[user]one")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "is not valid JSON: maximum recursion depth exceeded"),
        (b"[" + b"9" * 5000 + b"]", "is not valid JSON"),
        (b"\xff\xfe[\0]\0", "is not valid UTF-8: byte 0xff at offset 0"),
        (b'[{"role": ["user"], "content": "x"}]', "message 1 has no such role or no text"),
        (None, "cannot read"),
    ],
    ids=range(5),
)
def test_an_odd_file_does_not_end_the_chat(specx, tmp_path, data, message):
    path = tmp_path / ("talk.json" if data else "talk\0.json")
    if data:
        path.write_bytes(data)
    outcome = chat(specx, f"one\n/load {path}\n/save {tmp_path}/no\0name\ntwo\n")
    assert outcome.code == 1 and message in outcome.err and "cannot write" in outcome.err
    assert "unexpected" not in outcome.err
    assert specx.session.prompts[-1] == f"<s>[user]one[assistant]{TEXT}[user]two[assistant]"


def test_what_is_no_character_is_mended_and_told(specx, tmp_path):
    path = tmp_path / "talk.json"
    path.write_bytes(
        b'\xef\xbb\xbf[{"role": "system", "content": "a\\ud83d\\ude00"},'
        b'{"role": "user", "content": "b\\ud83dc"}, {"role": "assistant", "content": "\\udce9"}]'
    )
    outcome = chat(specx, f"/load {path}\ntwo\n/save {path}\n")
    assert outcome.code == 0 and "2 of them held lone surrogates" in outcome.err
    said = "<s>[system]a😀[user]b�c[assistant]�[user]two[assistant]"
    assert specx.session.prompts == [said]
    assert json.loads(path.read_text())[1]["content"] == "b�c"


def test_a_bug_does_not_cost_the_conversation(specx, tmp_path):
    path = tmp_path / "talk.json"
    chat(specx, f"one\n/save {path}\n")
    specx.session.fails_at, specx.session.failure = 1, ZeroDivisionError("a bug")
    outcome = chat(specx, f"/load {path}\ntwo\n/save {path}\n")
    assert outcome.code == 1 and "error: unexpected ZeroDivisionError: a bug" in outcome.err
    assert [message["content"] for message in json.loads(path.read_text())] == ["one", TEXT]


def test_a_conversation_that_cannot_be_written_leaves_the_old_file(specx, tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    assert chat(specx, f"one\n/save {tmp_path}/link\n").code == 0
    assert (tmp_path / "link").is_symlink()
    assert len(json.loads((tmp_path / "real").read_text())) == 2
    kept = (tmp_path / "real").read_bytes()
    outcome = chat(
        specx, f"two\n/save {tmp_path}\n/save {tmp_path}/real/below\n/save {tmp_path}/{'d' * 300}\n"
    )
    assert outcome.code == 1 and outcome.err.count("cannot write") == 3
    assert (tmp_path / "real").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir() if "specx-" in path.name) == []


@pytest.mark.parametrize("option", ["-p", "-sys", "-r"])
def test_text_of_the_command_line_that_is_none(specx, option):
    outcome = specx("complete", specx.model, "-p", "x", option, "caf\udce9")
    assert outcome.code == 2 and "is not valid UTF-8" in outcome.err


def test_regenerate_answers_once_more_with_another_seed(specx):
    chat(specx, "/regenerate\none\n/regenerate\n", "-s", "5")
    assert specx.session.prompts == ["<s>[user]one[assistant]"] * 2
    assert [sampling.seed for sampling in specx.session.samplings] == [5, None]


def test_a_failed_answer_takes_the_message_back(specx):
    specx.session.fails_at, specx.session.failure = 1, RollbackError("the cache is broken")
    outcome = chat(specx, "one\n/save /dev/null\n")
    assert outcome.code == 1
    assert "error: the cache is broken" in outcome.err
    assert "0 messages kept" in outcome.err


def test_a_failed_regeneration_keeps_the_old_answer(specx, tmp_path):
    path = tmp_path / "talk.json"
    specx.session.n_ctx = 60
    chat(specx, f"one\n/system {'x' * 60}\n/regenerate\n/save {path}\n")
    assert [message["content"] for message in json.loads(path.read_text())[1:]] == ["one", TEXT]


def test_a_full_context_loses_nothing(specx, tmp_path):
    path = tmp_path / "talk.json"
    specx.session.n_ctx = 60
    outcome = chat(specx, f"one\n{'long ' * 20}\n/save {path}\n")
    assert "error: with this message the conversation has" in outcome.err
    assert "hint: /reset" in outcome.err and "--context-shift" in outcome.err
    assert [message["content"] for message in json.loads(path.read_text())] == ["one", TEXT]


def test_with_context_shift_the_oldest_exchanges_go_and_are_saved(specx, tmp_path):
    path = tmp_path / "talk.json"
    specx.session.n_ctx = 200
    outcome = chat(specx, f"one\ntwo\nthree\nfour\n/save {path}\n", "--context-shift", "-sys", "Be brief")
    assert "the 2 oldest exchanges are no longer shown to the model" in outcome.err
    start = "<s>[system]Be brief[user]"
    assert (
        specx.session.prompts[2]
        == f"{start}one[assistant]{TEXT}[user]two[assistant]{TEXT}[user]three[assistant]"
    )
    assert specx.session.prompts[3] == f"{start}three[assistant]{TEXT}[user]four[assistant]"
    kept = json.loads(path.read_text())
    assert [m["content"] for m in kept if m["role"] == "user"] == ["one", "two", "three", "four"]


TURN = len("<s>[user]?")  # the fake session has a token for each byte


@pytest.mark.parametrize(
    ("arguments", "keep"),
    [
        ([], 0),
        (["--context-shift"], TURN - 1),
        (["--context-shift", "-sys", "Be brief"], TURN - 1 + len("[system]Be brief")),
        (["--context-shift", "-sys", "Be brief", "--keep", "3"], 3),
        (["--context-shift", "--keep", "-1"], -1),
    ],
    ids=str,
)
def test_an_answer_that_fills_the_context_leaves_the_system_message_in_view(specx, arguments, keep):
    chat(specx, "one\ntwo\n", *arguments)
    assert [request["keep"] for request in specx.session.requests] == [keep, keep]


def test_a_user_that_is_not_there_is_no_bug(specx):
    outcome = chat(specx, "hello\n/load ~nobody-of-that-name/talk.json\n")
    assert "error: cannot read ~nobody-of-that-name/talk.json" in outcome.err


def test_a_message_that_never_fits_leaves_the_rest_alone(specx):
    specx.session.n_ctx = 100
    outcome = chat(specx, f"one\n{'long ' * 20}\ntwo\n/regenerate\n", "--context-shift")
    assert "error: with this message" in outcome.err and "hint: send a shorter one" in outcome.err
    assert specx.session.prompts[1].startswith("<s>[user]one[assistant]")


def test_an_answer_that_fills_the_context_is_kept(specx):
    specx.session.finish_reason = "context"
    outcome = chat(specx, "one\ntwo\n")
    assert "the context of 4096 tokens is full: /reset" in outcome.err
    assert TEXT in specx.session.prompts[1]


def test_input_that_is_not_utf8(specx):
    outcome = specx("chat", specx.model, stdin=b'\xef\xbb\xbfone\nab\xff\ntwo\n"""\n\xe9\n"""\nthree\n')
    assert outcome.code == 1
    assert "standard input (after 7 bytes) is not valid UTF-8: byte 0xff at offset 2" in outcome.err
    assert "standard input (after 15 bytes) is not valid UTF-8: byte 0xe9 at offset 4" in outcome.err
    sent = [prompt.rpartition("[user]")[2] for prompt in specx.session.prompts]
    assert sent == ["one[assistant]", "two[assistant]", "three[assistant]"]


def test_leaving_out_stops_at_the_last_exchange():
    conversation = Conversation("system")
    for role in ("user", "assistant", "user", "assistant"):
        conversation.add(role, role)
    assert conversation.next_exchange(0) == 2
    assert [message["role"] for message in conversation.since(2)] == ["system", "user", "assistant"]
    assert conversation.next_exchange(2) is None


def test_typed_lines_are_private_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "cache"))
    path = history_file()
    assert path is not None and path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"\n# 2026\n+a line\n" * 40_000)
    assert history_file() == path
    kept = path.read_bytes()
    assert len(kept) <= 256 * 1024 and kept.startswith(b"\n# 2026\n+a line\n")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "file"))
    assert history_file() is None


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one", 0),
        ("one\n\ntwo", 5),
        ("one\n\n", 5),
        ("```\na\n\nb", 0),
        ("```\na\n\nb\n```\n\nc", 14),
        ("~~~\n```\n\n", 0),
    ],
)
def test_which_part_of_markdown_is_finished(text, end):
    assert finished(text) == end


@pytest.fixture
def terminal(spawn, model, open_terminal):
    return lambda *arguments, **env: open_terminal(spawn, "chat", model, *arguments, **env)


def test_a_terminal_session(terminal):
    shell = terminal()
    shell.type("hello\r", after=1)
    shell.until("33% of drafts accepted")
    shell.type("/bye\r", after=2)
    assert shell.process.wait(PATIENCE) == 0
    status = r"\x1bD\x1b\[1A|\x1b7.*?\x1b8"  # drawn beside the text, on the last line
    assert TEXT in re.sub(status, "", shell.shown) and "7 tokens, 100.0 tokens/s" in shell.shown
    assert "Traceback" not in shell.shown


def test_ctrl_c_in_a_terminal(terminal):
    shell = terminal(FAKE_ENDLESS="1", FAKE_DELAY="0.02")
    shell.type("hello\r", after=1)
    shell.until("Hello")
    shell.process.send_signal(signal.SIGINT)
    shell.type("half a line\x03", after=2)
    shell.type("\x03")
    shell.until("Ctrl-C again leaves")
    shell.type("", after=3)
    with pytest.raises(subprocess.TimeoutExpired):
        shell.process.wait(0.2)
    shell.type("\x03")
    assert shell.process.wait(PATIENCE) == 130


@pytest.fixture
def interruptible():
    """A program started in the background inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_late_ctrl_c_does_not_end_the_chat(specx, monkeypatch):
    talk = Chat(specx.session, Request(SamplingSettings(), GenerationOptions()))
    monkeypatch.setattr(talk, "take", lambda _text: os.kill(os.getpid(), signal.SIGINT))
    messages = iter(["one", "two", None])
    reader = SimpleNamespace(read=lambda: next(messages))
    talk.run(reader)
    assert next(messages, "none left") == "none left"
    talk.scripted = True
    messages = iter(["one", None])
    with pytest.raises(KeyboardInterrupt):
        talk.run(reader)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_before_the_prompt_is_written_down_takes_the_message_back(specx, monkeypatch, capfd):
    talk = Chat(specx.session, Request(SamplingSettings(), GenerationOptions()))
    interrupted = []

    def tokenize(text, **_options):
        if not interrupted:
            interrupted.append(text)
            os.kill(os.getpid(), signal.SIGINT)
        return list(text.encode())

    monkeypatch.setattr(specx.session, "tokenize", tokenize)
    messages = iter(["one", "two", None])
    talk.run(SimpleNamespace(read=lambda: next(messages)))
    assert [message["content"] for message in talk.conversation.messages] == ["two", TEXT]
    assert "the message is taken back" in capfd.readouterr().err
    talk.scripted = True
    interrupted.clear()
    with pytest.raises(KeyboardInterrupt):
        talk.run(SimpleNamespace(read=lambda: "three"))


def test_a_chat_says_which_messages_the_model_no_longer_sees(specx, capfd):
    specx.session.chat_template = "{% for m in messages[-3:] %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    talk = Chat(specx.session, Request(SamplingSettings(), GenerationOptions()))
    talk.take("one")
    talk.take("two")
    assert "leaves out earlier messages" not in capfd.readouterr().err
    talk.take("three")
    talk.take("four")
    assert capfd.readouterr().err.count("leaves out earlier messages") == 1


def test_markdown_in_a_terminal(terminal):
    shell = terminal("--markdown", "--no-stats", "-p", "hello", "--no-cache")
    shell.until("are you?")
    shell.type("\x04", after=1)
    assert shell.process.wait(PATIENCE) == 0


def test_ctrl_c_ends_a_chat_that_nobody_types(spawn, model):
    process = spawn("chat", model, stdin=subprocess.PIPE, env={"FAKE_ENDLESS": "1", "FAKE_DELAY": "0.05"})
    process.stdin.write(b"one\ntwo\n")
    assert process.stdout.read(1) == b"H"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out.endswith(b"\n") and out.count(b"\n") == 1 and b"Traceback" not in err


def test_another_file_is_replaced_only_when_a_person_asks_twice(specx, tmp_path, capfd):
    path, own = tmp_path / "talk.json", tmp_path / "own.json"
    path.write_text("[]")
    talk = Chat(specx.session, Request(SamplingSettings(), GenerationOptions()))
    talk._command(f"/save {own}")
    talk._command(f"/save {own}")  # which it wrote itself
    talk._command(f"/save {path}")
    assert path.read_text() == "[]" and "the same command once more replaces it" in capfd.readouterr().err
    talk.conversation.add("user", "one")
    talk._command(f"/save {path}")
    assert json.loads(path.read_text()) == [{"role": "user", "content": "one"}]
    path.write_text("[]")
    talk.scripted = True
    talk._replaceable.clear()
    talk._command(f"/save {path}")  # nobody is there to be asked
    assert json.loads(path.read_text()) == [{"role": "user", "content": "one"}]


def test_a_quiet_chat_says_what_is_wrong_only(specx):
    assert chat(specx, "one\n", "-q").err == ""
    outcome = chat(specx, "one\n/nothing\n", "-q")
    assert outcome.err.startswith("error: there is no command /nothing")
    assert "tokens/s" in chat(specx, "one\n", "-q", "--stats").err


def test_an_answer_that_the_limit_ended_is_told(specx):
    assert "stopped after 2 tokens, the most that -n allows" in chat(specx, "one\n", "-n", "2").err
    assert "2 tokens (the most that -n allows)" in chat(specx, "one\n", "-n", "2", "--stats").err
    assert "stopped" not in chat(specx, "one\n").err


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_command_shows_no_progress_in_a_terminal(monkeypatch, quiet):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert Progress("reading the prompt", quiet=quiet)._enabled is not quiet


def test_an_answer_that_was_cut_off_before_it_matched_has_its_own_exit_code(specx):
    specx.session.finish_reason = "context"
    outcome = chat(specx, "one\n", "--grammar", 'root ::= "x"')
    assert outcome.code == 3 and "cut off before it matched" in outcome.err
    assert chat(specx, "one\n/nothing\n", "--grammar", 'root ::= "x"').code == 1
    assert chat(specx, "one\n").code == 0
