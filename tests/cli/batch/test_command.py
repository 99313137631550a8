"""`specx batch` from the command line to its output, its messages and its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from unittest.mock import ANY

import pytest


def lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


def table(text, delimiter):
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def content(record):
    record = record["response"]["body"] if "response" in record else record
    choice = record["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def chat(word, **fields):
    return {"messages": [{"role": "user", "content": word}], "max_tokens": 5, **fields}


def openai(custom_id, body, url="/v1/chat/completions"):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def file_of(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def test_lines_of_openai_come_back_in_their_form(batch, tmp_path):
    source = file_of(
        tmp_path / "in.jsonl",
        openai("a", chat("red")),
        openai("b", {"prompt": "green", "max_tokens": 5}, "/v1/completions"),
        openai("c", chat("blue", temperature="hot")),
    )
    done = batch(source)
    a, b, c = lines(done.out)
    assert [line["custom_id"] for line in (a, b, c)] == ["a", "b", "c"]
    assert set(a) == {"id", "custom_id", "response", "error"}
    assert a["response"]["status_code"] == b["response"]["status_code"] == 200
    assert a["response"]["body"]["object"] == "chat.completion"
    assert b["response"]["body"]["object"] == "text_completion"
    assert len({a["id"], b["id"], c["id"], a["response"]["request_id"]}) == 4
    assert c["response"]["status_code"] == 400 and c["error"] is None
    assert c["response"]["body"]["error"]["param"] == "temperature"
    assert done.code == 3
    assert "line 3 (c): temperature" in done.err and "1 failed" in done.err


def test_bodies_come_back_as_responses(batch, tmp_path):
    source = file_of(
        tmp_path / "in.jsonl", {"custom_id": "x", **chat("red")}, {"prompt": "green", "n": 2, "max_tokens": 4}
    )
    done = batch(source)
    chatted, completed = lines(done.out)
    assert (chatted["line"], chatted["custom_id"], chatted["object"]) == (1, "x", "chat.completion")
    assert completed["line"] == 2 and "custom_id" not in completed
    assert len(completed["choices"]) == 2
    assert done.code == 0


def test_texts_become_messages_or_are_continued(batch, words):
    asked = lines(batch(words, "-n", "4", "-sys", "Be brief.").out)
    assert [line["line"] for line in asked] == [1, 2, 3]
    prompt = len("[system]Be brief.[user]red[assistant]")
    session = batch.sessions[-1]
    assert asked[0]["object"] == "chat.completion"
    assert asked[0]["usage"]["prompt_tokens"] <= prompt
    expected = session.tokenize("[system]Be brief.[user]red[assistant]", add_special=True, parse_special=True)
    assert asked[0]["usage"]["prompt_tokens"] == len(expected)
    raw = lines(batch(words, "-n", "4", "--raw").out)
    assert raw[0]["object"] == "text_completion" and raw[0]["usage"]["prompt_tokens"] == 3


def test_texts_alone_have_a_line_each(batch, words):
    words.write_text("red\n\ngreen\n\xff\n", encoding="latin-1")
    whole = [content(line) for line in lines(batch(words, "-s", "1", "-n", "6").out) if "error" not in line]
    done = batch(words, "--text", "-s", "1", "-n", "6")
    written = done.out.split("\n")
    assert len(written) == 5 and written[1] == written[3] == written[4] == ""
    back = [line.replace("\\n", "\n").replace("\\r", "\r").replace("\\\\", "\\") for line in written]
    assert [back[0], back[2]] == whole
    assert done.code == 3 and "line 4: byte 0xff" in done.err


def test_a_table_gets_a_column(batch, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes('\ufefftext;n\r\n"a;b\r\nc";1\r\nü;2\r\n'.encode())
    done = batch(source, "--template", "Say {text} {n}", "--column", "reply", "-n", "4")
    rows = table(done.out, ";")
    assert rows[0] == ["text", "n", "reply"] and "\r\n" in done.out
    assert [row[:2] for row in rows[1:]] == [["a;b\r\nc", "1"], ["ü", "2"]]
    assert all(row[2] for row in rows[1:])
    assert done.code == 0


def test_samples_of_a_table_have_columns_of_their_own(batch, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text("prompt\nred\ngreen\n")
    rows = table(batch(source, "-s", "1", "-k", "3", "-n", "5").out, "\t")
    assert rows[0] == ["prompt", "answer_1", "answer_2", "answer_3"]
    assert len(set(rows[1][1:])) == 3


def test_samples_share_one_line(batch, words):
    (first, *_) = lines(batch(words, "-s", "1", "-k", "3", "-n", "5").out)
    assert len({choice["message"]["content"] for choice in first["choices"]}) == 3
    assert batch(words, "-s", "1", "-k", "3", "-n", "5", "--text").out.count("\n") == 9


def test_objects_with_a_template(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", {"title": "x", "year": 3}, {"title": "y"})
    good, bad = lines(batch(source, "--template", "{{{title}}} {year}", "-n", "3").out)
    assert good["choices"] and bad["error"]["message"] == "line 2: there is no field 'year'"


def test_objects_with_a_template_are_no_lines_of_openai(batch, tmp_path):
    source = file_of(
        tmp_path / "in.jsonl", {"url": "x", "body": "red", "method": 1}, {"url": "y", "prompt": 2}
    )
    first, second = lines(batch(source, "--template", "{url}", "-n", "3").out)
    assert first["line"] == 1 and first["choices"] and second["choices"]


def test_what_an_item_says_beats_what_the_options_say(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "a", "max_tokens": 2}, {"prompt": "a"})
    short, long = lines(batch(source, "-n", "5", "--ignore-eos").out)
    assert [line["usage"]["completion_tokens"] for line in (short, long)] == [2, 5]


def test_the_same_text_at_any_parallel_order_and_company(batch, tmp_path):
    bodies = [chat(f"word {i % 7}", max_tokens=3 + i % 5) for i in range(20)]
    source = file_of(tmp_path / "in.jsonl", *bodies)
    one = [content(line) for line in lines(batch(source, "-s", "5", "--parallel", "1").out)]
    assert [content(line) for line in lines(batch(source, "-s", "5", "--parallel", "8").out)] == one
    turned = file_of(tmp_path / "turned.jsonl", *bodies[::-1])
    other = lines(batch(turned, "-s", "5", "--unordered").out)
    assert sorted(content(line) for line in other) == sorted(one)
    assert len({one[0], one[7], one[14]}) > 1  # the same request again is another sample
    fewer = file_of(tmp_path / "fewer.jsonl", *bodies[3:5])
    assert [content(line) for line in lines(batch(fewer, "-s", "5").out)] == one[3:5]


def test_a_named_request_keeps_its_seed_whatever_stands_before_it(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", openai("a", chat("x")), openai("b", chat("x")))
    turned = file_of(tmp_path / "turned.jsonl", openai("b", chat("x")), openai("a", chat("x")))
    before = {line["custom_id"]: content(line) for line in lines(batch(source, "-s", "1").out)}
    after = {line["custom_id"]: content(line) for line in lines(batch(turned, "-s", "1").out)}
    assert before == after and before["a"] != before["b"]


def test_answers_come_in_order_unless_it_does_not_matter(batch, tmp_path):
    source = file_of(
        tmp_path / "in.jsonl", *(chat(f"w{i}", max_tokens=40 if i == 0 else 1) for i in range(5))
    )
    assert [line["line"] for line in lines(batch(source, "--ignore-eos").out)] == [1, 2, 3, 4, 5]
    finished = [line["line"] for line in lines(batch(source, "--ignore-eos", "--unordered").out)]
    assert sorted(finished) == [1, 2, 3, 4, 5] and finished[-1] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "it is not valid JSON"),
        (b"[1, 2]", "it is no JSON object"),
        (b'{"prompt": "a", "n": NaN}', "NaN is no number"),
        (b'{"prompt": "a", "temperature": 1e999}', "a number that is too large: 1e999"),
        (b'{"prompt": "a", "logit_bias": {"5": -1e999}}', "a number that is too large: -1e999"),
        (b'{"prompt": "a", "n": ' + b"7" * 5000 + b"}", "a number with too many digits"),
        (b'{"prompt": "a", "max_tokens": ' + b"7" * 400 + b"}", "a number with too many digits"),
        (b'{"prompt": "a", "max_tokens": ' + b"7" * 290 + b"}", "max_tokens"),
        (b'{"prompt": "a\0"}', "it is not valid JSON"),
        (b'{"prompt": "\xff"}', "byte 0xff at 12 is not UTF-8"),
        (b'{"text": "a"}', "neither messages nor a prompt"),
        (b'{"prompt": "a", "messages": []}', "both messages and a prompt"),
        (b'{"prompt": 7}', "prompt"),
        (b'{"prompt": "\\ud800"}', "half a surrogate pair"),
        (b'{"messages": "hello"}', "messages"),
        (b'{"prompt": "a", "max_tokens": -7}', "max_tokens"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"custom_id": 1, "url": "/v1/completions", "body": {"prompt": "a"}}', "custom_id is no string"),
        (b'{"url": "/v1/completions", "body": {"prompt": "a"}}', "custom_id is missing"),
        (b'{"custom_id": "x", "url": "/v1/embeddings", "body": {}}', "url is"),
        (b'{"custom_id": "x", "url": "/v1/completions", "method": "GET", "body": {}}', "only POST"),
        (b'{"custom_id": "x", "url": "/v1/completions"}', "body is missing"),
        (b'{"custom_id": "x", "url": "/v1/completions", "body": 3}', "body is no object"),
        (b'{"prompt": "' + b"word " * 5000 + b'"}', "-c "),
    ],
)
def test_what_is_wrong_with_a_line_is_its_own(batch, tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"prompt": "a", "max_tokens": 3}\n' + line + b'\r\n{"prompt": "b", "max_tokens": 3}\n'
    )
    done = batch(source, "-c", "512")
    before, wrong, after = lines(done.out)
    assert before["choices"] and after["choices"]
    wrong = wrong["response"]["body"] if "response" in wrong else wrong
    assert message in wrong["error"]["message"]
    assert done.code == 3 and message in done.err


def test_an_input_without_items(batch, tmp_path):
    source = tmp_path / "in.jsonl"
    for data in (b"", b"\n \r\n\n", b"\xef\xbb\xbf"):
        source.write_bytes(data)
        done = batch(source, "-o", tmp_path / "out.jsonl")
        assert (done.code, done.out) == (0, "")
        assert (tmp_path / "out.jsonl").read_bytes() == b""
        assert "empty" in done.err
    assert not batch.sessions  # and no model is loaded for it
    assert batch(stdin=b"").code == 0


def test_the_first_bytes_may_be_a_mark(batch, tmp_path):
    source = tmp_path / "in"
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 3}\r\n')
    assert lines(batch(source).out)[0]["object"] == "text_completion"
    source.write_bytes("red\n".encode("utf-16"))
    done = batch(source)
    assert done.code == 2 and "UTF-16" in done.err and "iconv" in done.err


def test_standard_input(batch):
    assert len(lines(batch("-", "-n", "3", stdin=b"red\ngreen\n").out)) == 2
    assert len(lines(batch("-n", "3", stdin=b'{"prompt": "red"}\n').out)) == 1
    done = batch("--format", "csv", "--template", "{a}", "-n", "3", stdin=b"a,b\n1,2\n")
    assert done.out.startswith("a,b,answer\n1,2,")


def test_which_argument_is_the_input(batch, words, monkeypatch):
    from specx.cli.app import run

    monkeypatch.setenv("SPECX_MODEL", batch.model)
    assert run(["batch", str(words), "-n", "3"]) == 0
    assert len(lines(batch.capfd.readouterr().out)) == 3
    assert run(["batch", "-m", batch.model, str(words), "-n", "3"]) == 0
    assert len(lines(batch.capfd.readouterr().out)) == 3
    done = batch()
    assert done.code == 2 and "no input" in done.err


def test_an_error_names_its_line_once(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", {"custom_id": "a", "method": "GET", "url": "/v1/completions"})
    done = batch(source)
    assert done.code == 3 and "line 1 (a): method is" in done.err and done.err.count("line 1") == 1


def test_duplicate_ids_name_both_lines(batch, tmp_path):
    source = file_of(
        tmp_path / "in.jsonl", openai("a", chat("x")), openai("b", chat("x")), openai("a", chat("y"))
    )
    done = batch(source)
    assert done.code == 2 and '"a" is on line 1 and again on line 3' in done.err and not batch.sessions
    # A pipe is not read twice: there it is the second one's own error.
    done = batch(stdin=source.read_bytes())
    first, _, again = lines(done.out)
    assert first["response"]["status_code"] == 200
    assert again["response"]["body"]["error"]["code"] == "duplicate_custom_id" and done.code == 3


@pytest.mark.parametrize("name", ["words.txt", "link.txt", "hard.txt"])
def test_the_output_is_not_the_input(batch, words, tmp_path, name):
    (tmp_path / "link.txt").symlink_to(words)
    os.link(words, tmp_path / "hard.txt")
    for more in ((), ("--force",), ("--resume",)):
        done = batch(words, "-o", tmp_path / name, *more)
        assert done.code == 2 and "is the input as well" in done.err
    assert words.read_text() == "red\ngreen\nblue\n"


@pytest.mark.parametrize("more", [(), ("--force",), ("--resume",)])
@pytest.mark.parametrize("beside", [".batch", ".errors.jsonl"])
def test_what_is_written_beside_the_output_is_not_the_input(batch, tmp_path, beside, more):
    source = tmp_path / f"out{beside}"
    source.write_text("red\ngreen\n")
    done = batch(source, "-o", tmp_path / "out", "--text", "--format", "lines", *more)
    assert done.code == 2 and "is the input as well" in done.err
    assert source.read_text() == "red\ngreen\n"


@pytest.mark.parametrize("data", ["", "[1]\n", '{"mine": 1}\n', "dear diary\n"])
@pytest.mark.parametrize("beside", [".batch", ".errors.jsonl"])
def test_files_of_something_else_beside_the_output_are_left_alone(batch, words, tmp_path, beside, data):
    other, output = tmp_path / f"out{beside}", tmp_path / "out"
    other.write_text(data)
    for more in ((), ("--resume",)):
        done = batch(words, "-o", output, "-n", "2", *more)
        if beside == ".batch" and not data:
            assert done.code == 0
            return
        assert done.code == 2 and other.name in done.err and "--force" in done.err
        assert other.read_text() == data
    assert batch(words, "-o", output, "-n", "2", "--force").code == 0
    output.unlink()  # what is left beside it is of a batch
    assert batch(words, "-o", output, "-n", "2").code == 0


def test_errors_can_end_it(batch, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": 1}\n' * 9 + '{"prompt": "a"}\n')
    done = batch(source, "--max-errors", "2", "--parallel", "1")
    assert done.code == 4 and len(lines(done.out)) == 3 and "7 left" in done.err
    assert batch(source, "--max-errors", "9", "-n", "2").code == 3


def test_what_a_machine_is_told(batch, words):
    done = batch(words, "--json", "-n", "3", "-s", "4")
    (event,) = lines(done.err)
    assert event["event"] == "done" and event["seed"] == 4
    assert (event["done"], event["total"], event["failed"], event["remaining"]) == (3, 3, 0, 0)
    assert event["tokens"] == sum(line["usage"]["completion_tokens"] for line in lines(done.out))


def test_a_terminal_gets_no_control_characters(batch, words, monkeypatch):
    raw = batch(words, "--text", "-n", "30", "--ignore-eos", "-s", "2").out
    assert any(ord(char) < 32 and char not in "\n\t" for char in raw)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = batch(words, "--text", "-n", "30", "--ignore-eos", "-s", "2").out
    assert not any(ord(char) < 32 and char not in "\n\t" for char in shown)
    assert shown.count("\n") == 3 and "\\x" in shown


def test_what_is_quiet_says_only_what_is_wrong(batch, words):
    assert batch(words, "-q", "-n", "3").err == ""


def test_cut_answers_are_counted(batch, words):
    done = batch(words, "-n", "2", "--ignore-eos")
    assert "3 cut at their limit" in done.err
    assert {line["choices"][0]["finish_reason"] for line in lines(done.out)} == {"length"}


def test_context_follows_from_the_input(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "a", "max_tokens": 3})
    batch(source)
    assert batch.asked[-1].n_ctx == 512 and batch.asked[-1].answers == 1
    file_of(source, {"prompt": [5] * 3000, "max_tokens": 3})  # 3000 tokens, whatever the vocabulary
    batch(source, "-c", "0")
    assert batch.asked[-1].n_ctx == 0
    batch(stdin=b"red\n")
    assert batch.asked[-1].n_ctx is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "--jsonl"), "both given"),
        (("--text", "--unordered"), "which text answers what"),
        (("--resume",), "-o FILE"),
        (("--resume", "--force", "-o", "x"), "both given"),
        (("--format", "xml"), "--format"),
        (("--template", "{a"), "--template"),
        (("--template", "{other}"), "{other}"),
        (("--template", "{text:>3}"), "{text:>3}"),
        (("--parallel", "many"), "--parallel"),
        (("-k", "0"), "-k"),
        (("-o", "/nowhere/x"), "no folder"),
        (("-sys", "x", "--raw"), "-sys"),
        (("--column", "x"), "--column"),
    ],
)
def test_options_that_make_no_sense(batch, words, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = batch(words, *arguments)
    assert done.code in (1, 2) and message in done.err and "hint:" in done.err
    assert not batch.sessions


def test_options_that_a_request_says_itself(batch, tmp_path):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "a"})
    done = batch(source, "-sys", "x")
    assert done.code == 2 and "--template" in done.err


def test_a_table_without_a_prompt(batch, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("a,b\n1,2\n")
    done = batch(source)
    assert done.code == 2 and "a, b" in done.err and "--template" in done.err
    assert "{c}" in batch(source, "--template", "{c}").err
    assert "column 'answer'" in batch(_with(source, "answer,b\n1,2\n"), "--template", "{b}").err
    assert "two columns" in batch(_with(source, "a,a\n1,2\n"), "--template", "{a}").err
    assert "is empty" in batch(_with(source, ""), "--template", "{a}").err


def test_columns_without_a_name_behind_the_last_one(batch, tmp_path):
    source = _with(tmp_path / "in.csv", "a,,\n1,,\n")
    done = batch(source, "--template", "{a}", "-n", "2", "-q")
    assert done.code == 0 and [row[:4] for row in table(done.out, ",")] == [
        ["a", "", "", "answer"],
        ["1", "", "", ANY],
    ]
    assert batch(source, "--template", "{}").code == 2
    assert batch(_with(source, "a,\n1,2\n"), "--template", "{}", "-n", "2", "-q").code == 0


def _with(path, text):
    path.write_text(text)
    return path


def test_rows_that_are_wrong(batch, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b"a,b\n1,2\n1\n\n1,2,3\n\xff,2\n")
    output = tmp_path / "out.csv"
    done = batch(source, "--template", "{a}", "-n", "3", "-o", output)
    rows = table(output.read_bytes().decode("latin-1"), ",")
    assert [len(row) for row in rows] == [3] * 5
    assert [bool(row[2]) for row in rows[1:]] == [True, False, False, False]
    assert rows[4][0] == "\xff"  # what is no text stays as it is
    errors = lines((tmp_path / "out.csv.errors.jsonl").read_text())
    assert [error["line"] for error in errors] == [3, 5, 6]
    assert done.code == 3


def test_a_schema_holds_for_all(batch, words):
    done = batch(words, "--json-schema", '{"type": "wrong"}')
    assert done.code == 2 and not batch.sessions


def test_the_model_must_be_there(batch, words, monkeypatch):
    from specx.cli.app import run

    assert run(["batch", "/nowhere/m.gguf", str(words)]) == 1
    assert "/nowhere/m.gguf" in batch.capfd.readouterr().err
