"""Going on with an output, whatever ended the run that began it, and noticing what is not as it was."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
from pathlib import Path

import pytest


def lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


def content(record):
    return record["choices"][0]["text"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    bodies = [{"prompt": f"w{i % 4}", "max_tokens": 3 if i != 5 else -9} for i in range(8)]
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def texts(output):
    return [content(line) if "error" not in line else line["id"] for line in lines(output.read_text())]


@pytest.fixture
def whole(batch, source, tmp_path):
    """What an undisturbed run gives."""
    path = tmp_path / "whole.jsonl"
    assert batch(source, "-s", "3", "-o", path).code == 3
    return texts(path)


def begun(batch, source, output, keep, tail=b""):
    """An output of which `keep` lines are left, and a `tail`."""
    batch(source, "-s", "3", "-o", output)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:keep]) + tail)


@pytest.mark.parametrize("keep", [0, 1, 5, 6, 7, 8])
@pytest.mark.parametrize("tail", [b"", b'{"line": 7, "id": "cmpl-0123', b"\0\0\0"])
def test_what_is_finished_is_not_done_again(batch, source, output, whole, keep, tail):
    begun(batch, source, output, keep, tail)
    kept = output.read_bytes().splitlines(keepends=True)[:keep]
    sessions = len(batch.sessions)
    done = batch(source, "-o", output, "--resume", "-s", "3")
    assert texts(output) == whole
    assert output.read_bytes().splitlines(keepends=True)[:keep] == kept
    assert done.code == 3  # the refused one is still refused
    assert len(batch.sessions) == sessions + (keep < 8)


@pytest.mark.parametrize("empty", [b"\n", b"\r\n", b" \n\n"])
@pytest.mark.parametrize("tail", [b"", b"\n", b'{"line": 7, "id": "cmpl-0123'])
def test_an_empty_line_ends_no_output(batch, source, output, whole, empty, tail):
    begun(batch, source, output, 6)
    first, *rest = output.read_bytes().splitlines(keepends=True)
    kept = first + empty + b"".join(rest)
    output.write_bytes(kept + tail)
    done = batch(source, "-o", output, "--resume")
    assert output.read_bytes().startswith(kept) and "6 done before" in done.err
    output.write_text("".join(line for line in output.read_text().splitlines(keepends=True) if line.strip()))
    assert texts(output) == whole


def test_a_whole_line_without_its_end_is_kept(batch, source, output, whole):
    begun(batch, source, output, 4)
    output.write_bytes(output.read_bytes()[:-1])
    kept = output.read_bytes()
    done = batch(source, "-o", output, "--resume")
    assert output.read_bytes().startswith(kept + b"\n") and texts(output) == whole
    assert "4 done before" in done.err


def test_equal_items_are_counted(batch, source, output, whole):
    begun(batch, source, output, 8)
    records = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(records[0] + records[4])  # w0 twice; w1, w2 and w3 not at all
    batch(source, "-o", output, "--resume", "--unordered")
    assert sorted(texts(output)) == sorted(whole)


@pytest.mark.parametrize("again", [False, True])
def test_an_output_without_an_order_stays_so(batch, source, output, whole, again):
    begun(batch, source, output, 8)
    records = output.read_bytes().splitlines(keepends=True)
    if again:  # begun in order, and gone on with in another one
        output.write_bytes(records[1])
        batch(source, "-o", output, "--resume", "--unordered", "--parallel", "1")
    else:
        batch(source, "-s", "3", "-o", output, "--unordered", "--force")
    output.write_bytes(records[4] + records[2])
    assert batch(source, "-o", output, "--resume").code == 3
    assert sorted(texts(output)) == sorted(whole)


def test_items_may_be_added(batch, source, output, whole):
    begun(batch, source, output, 8)
    source.write_text(source.read_text() + '{"prompt": "new", "max_tokens": 2}\n')
    done = batch(source, "-o", output, "--resume")
    assert texts(output)[:-1] == whole and len(texts(output)) == 9
    assert "1 answered, 8 done before" in done.err


@pytest.mark.parametrize("line", [0, 3])
def test_changed_items_are_noticed(batch, source, output, line):
    begun(batch, source, output, 8)
    before = output.read_bytes()
    items = source.read_text().splitlines(keepends=True)
    items[line] = '{"prompt": "other", "max_tokens": 3}\n'
    source.write_text("".join(items))
    done = batch(source, "-o", output, "--resume")
    assert done.code == 2 and f"line {line + 1}" in done.err and "--force" in done.err
    done = batch(source, "-o", output, "--resume", "--unordered")
    assert done.code == 2 and "1 answers" in done.err and f"line {line + 1}" in done.err
    assert output.read_bytes() == before


def test_removed_items_are_noticed(batch, source, output):
    begun(batch, source, output, 8)
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:6]))
    for more in ((), ("--unordered",)):
        done = batch(source, "-o", output, "--resume", *more)
        assert done.code == 2 and "2 answers" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temp", "0.3"), "temperature was 0.8 and is 0.3"),
        (("-n", "9"), "n-predict was 1024 and is 9"),
        (("-r", "x"), "stop was not given and is"),
        (("-k", "2"), "n was not given and is 2"),
        (("--parse-special",), "parse-special was false and is true"),
        (("--text",), "form of the output"),
        (("--grammar", 'root ::= "a"'), "grammar or schema was not given"),
        (("-ctk", "q8_0"), "cache types"),
        (("-s", "4"), "--seed 3, and it is 4 now"),
    ],
)
def test_other_settings_are_noticed(batch, source, output, arguments, message):
    begun(batch, source, output, 2)
    before = output.read_bytes()
    done = batch(source, "-o", output, "--resume", *arguments)
    assert done.code == 2 and message in done.err and "--force" in done.err
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ("a,c\n1,2\n3,4\n", (), "header of the output"),
        ("a;b\n1;2\n3;4\n", (), "header of the output"),
        ("a,b\r\n1,2\r\n3,4\r\n", (), "header of the output"),
        ("a,b\n1,2\n3,4\n", ("--column", "reply"), "header of the output"),
        ("a,b\n1,9\n3,4\n", (), "the input was changed: line 2"),
    ],
)
def test_another_table_is_noticed(batch, tmp_path, table, more, message):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"a,b\n1,2\n3,4\n")
    made_of = (source, "-o", output, "--template", "{a}", "-n", "3")
    batch(*made_of)
    before = output.read_bytes()
    source.write_bytes(table.encode())
    done = batch(*made_of, "--resume", *more)
    assert done.code == 2 and message in done.err and output.read_bytes() == before


def test_another_model_is_noticed(batch, source, output, tmp_path):
    begun(batch, source, output, 2)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    batch.model = str(other)
    done = batch(source, "-o", output, "--resume")
    assert done.code == 2 and "model was model (scripted) and is other (scripted)" in done.err


def test_an_output_is_not_overwritten(batch, source, output, whole):
    begun(batch, source, output, 3)
    before = output.read_bytes()
    done = batch(source, "-o", output)
    assert done.code == 2 and "--resume" in done.err and "--force" in done.err
    assert output.read_bytes() == before
    assert batch(source, "-o", output, "--force", "-s", "3").code == 3
    assert texts(output) == whole


def test_what_says_how_it_was_made_is_missing(batch, source, output):
    begun(batch, source, output, 3)
    beside = Path(f"{output}.batch")
    much = beside.read_bytes().replace(b'"seed": 3', b'"seed": 1e999')
    for damage in (b"{", b"[]\n", b"\xff", b"[" * 100_000, much, b'{"specx_batch": 99}\n', None):
        if damage is None:
            beside.unlink()
        else:
            beside.write_bytes(damage)
        done = batch(source, "-o", output, "--resume")
        assert done.code == 1 and beside.name in done.err and "--force" in done.err


def test_a_header_that_was_torn_is_written_again(batch, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("a,b\n1,2\n3,4\n")
    made_of = (source, "-o", output, "--template", "{a}", "-n", "3", "-s", "2")
    batch(*made_of)
    beside = Path(f"{output}.batch")
    whole, journal = output.read_bytes(), beside.read_bytes()
    output.write_bytes(whole[:4])
    assert batch(*made_of, "--resume").code == 0
    assert (output.read_bytes(), beside.read_bytes()) == (whole, journal)


def test_sizes_that_cannot_be_are_not_believed(batch, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("red\ngreen\n")
    made_of = (source, "-o", output, "--text", "-n", "3", "-s", "2")
    batch(*made_of)
    beside = Path(f"{output}.batch")
    whole, journal = output.read_bytes(), beside.read_bytes()
    for entry in (b" -5 00000000 0\n", b" 1 00000000 0\n", b" 9" + b"9" * 20 + b" 00000000 0\n", b" \xff\n"):
        beside.write_bytes(journal + b"0" * 16 + entry)
        assert batch(*made_of, "--resume").code == 0
        assert output.read_bytes() == whole


def test_a_file_of_something_else_is_left_alone(batch, source, output):
    output.write_text("dear diary\n")
    assert batch(source, "-o", output, "--resume").code == 1
    assert output.read_text() == "dear diary\n"
    output.unlink()
    begun(batch, source, output, 2, b"dear diary\n")
    done = batch(source, "-o", output, "--resume")
    assert done.code == 1 and "line 3" in done.err
    assert output.read_bytes().endswith(b"dear diary\n")


def test_two_batches_do_not_share_an_output(batch, source, output, start):
    process = start(source, "-o", output, delay=0.2)
    while not output.exists() or not output.stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)  # however long the other one takes to begin
    done = batch(source, "-o", output, "--resume")
    assert done.code == 1 and "another process" in done.err


def test_pipes_can_be_gone_on_with(batch, source, output, whole):
    begun(batch, source, output, 3)
    assert batch("-", "-o", output, "--resume", stdin=source.read_bytes()).code == 3
    assert texts(output) == whole
    fewer = b"".join(source.read_bytes().splitlines(keepends=True)[:2])
    done = batch("-", "-o", output, "--resume", stdin=fewer)
    assert done.code == 2 and "6 answers" in done.err
    done = batch("-", "-o", output, "--resume", stdin=b'{"prompt": "other"}\n')
    assert done.code == 2 and "line 1" in done.err


@pytest.mark.parametrize("form", ["text", "table"])
def test_texts_and_tables_end_where_all_files_agree(batch, tmp_path, form):
    chance = random.Random(3)
    source = tmp_path / ("in.csv" if form == "table" else "in.txt")
    rows = [f'{i},"w{i % 3}\nx"' if form == "table" else f"w{i % 3}" for i in range(9)]
    source.write_bytes("\n".join((["a,b"] if form == "table" else []) + rows).encode() + b"\n\xff,\n")
    more = ("--template", "{b}") if form == "table" else ("--text",)
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert batch(source, "-o", whole, "-n", "5", "-s", "2", *more).code == 3
    errors = Path(f"{whole}.errors.jsonl").read_bytes()
    for _ in range(12):
        batch(source, "-o", output, "-n", "5", "-s", "2", "--force", *more)
        for beside in ("", ".errors.jsonl", ".batch"):
            path = Path(f"{output}{beside}")
            least = len(path.read_bytes().split(b"\n")[0]) + 1 if beside == ".batch" else 0
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.truncate(max(size - chance.choice((0, 0, 1, 7, 80)), least))
        assert batch(source, "-o", output, "--resume", "-n", "5", *more).code == 3
        assert output.read_bytes() == whole.read_bytes()
        assert Path(f"{output}.errors.jsonl").read_bytes() == errors


def test_texts_that_were_changed_are_left_alone(batch, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("red\ngreen\n")
    batch(source, "-o", output, "-n", "4", "--text")
    output.write_bytes(b"something that is longer than what was written to it\n" * 9)
    done = batch(source, "-o", output, "-n", "4", "--text", "--resume")
    assert done.code == 1 and "was changed" in done.err


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b"a,b\n" + b"".join(b"%d,w\n" % i for i in range(5)) + b"\xff,w\n6,w\n")
    return path


def rows_of(output):
    return re.findall(rb'(?:"[^"]*"|[^"\n])*\n', output.read_bytes())


def of_table(source, output):
    return (source, "-o", output, "--template", "{b} {a}", "-n", "3", "-s", "2")


@pytest.mark.parametrize("removed", [(0,), (2,), (5,), (6,), (1, 2, 5, 6)])
def test_a_row_that_was_removed_is_asked_again(batch, table, tmp_path, removed):
    output = tmp_path / "out.csv"
    batch(*of_table(table, output))
    header, *rows = rows_of(output)
    errors = Path(f"{output}.errors.jsonl").read_bytes()
    output.write_bytes(header + b"".join(row for i, row in enumerate(rows) if i not in removed))
    for _ in range(2):
        assert batch(*of_table(table, output), "--resume", "--unordered").code == 3
        assert sorted(rows_of(output)[1:]) == sorted(rows)
        assert Path(f"{output}.errors.jsonl").read_bytes() == errors


def test_rows_that_were_removed_before_others_leave_the_order(batch, table, tmp_path):
    output = tmp_path / "out.csv"
    batch(*of_table(table, output))
    rows = rows_of(output)
    output.write_bytes(b"".join(rows[:2] + rows[3:]))
    done = batch(*of_table(table, output), "--resume")
    assert done.code == 2 and "1 records were removed" in done.err and "--unordered" in done.err


def test_texts_that_were_removed_from_the_end_are_asked_again(batch, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("red\n\ngreen\nblue\n")
    made_of = (source, "-o", output, "-n", "4", "--text", "-s", "2")
    batch(*made_of)
    whole, lines = output.read_bytes(), output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[1:]))
    done = batch(*made_of, "--resume")
    assert done.code == 2 and "remove these as well" in done.err
    output.write_bytes(b"".join(lines[:2]))
    assert batch(*made_of, "--resume").code == 0 and output.read_bytes() == whole


def test_files_beside_the_output_that_cannot_be_written(batch, table, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    batch(*of_table(table, output))
    rows, journal = rows_of(output), Path(f"{output}.batch").read_bytes()
    output.write_bytes(b"".join(rows[:2] + rows[3:]))

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = batch(*of_table(table, output), "--resume", "--unordered")
    assert done.code == 1 and "No space left" in done.err
    assert Path(f"{output}.batch").read_bytes() == journal
    assert sorted(each.name for each in tmp_path.glob("*out.csv*")) == [
        "out.csv",
        "out.csv.batch",
        "out.csv.errors.jsonl",
    ]


def edited(rows):
    yield [b"0,w,mine\n", *rows[1:]]
    yield [*rows[:-1], b"6,w\n"]
    yield [rows[1], rows[0], *rows[2:]]
    yield [rows[0], *rows]
    yield [*rows[:2], b"\n", *rows[2:]]
    yield [row.replace(b"\n", b"\r\n") for row in rows]


@pytest.mark.parametrize("number", range(6))
def test_a_table_that_was_edited_is_left_alone(batch, table, tmp_path, number):
    output = tmp_path / "out.csv"
    batch(*of_table(table, output))
    header, *rows = rows_of(output)
    changed = header + b"".join(list(edited(rows))[number])
    output.write_bytes(changed)
    done = batch(*of_table(table, output), "--resume", "--unordered")
    assert done.code == 1 and "was changed" in done.err and output.read_bytes() == changed


def test_without_the_file_of_errors_the_output_stays(batch, table, tmp_path):
    output = tmp_path / "out.csv"
    batch(*of_table(table, output))
    whole = output.read_bytes()
    Path(f"{output}.errors.jsonl").unlink()
    done = batch(*of_table(table, output), "--resume")
    assert done.code == 3 and "nothing to do" in done.err and output.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_failed_last_is_asked_again_where_its_error_was_cut_off(batch, tmp_path, kept):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"a,b\n0,w\n\xff,w\n2,w\n\xfe,w\n\xfd,w\n5,w\n")
    batch(*of_table(source, output))
    whole, errors = output.read_bytes(), Path(f"{output}.errors.jsonl")
    told = errors.read_bytes()
    lines = told.splitlines(keepends=True)
    errors.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    done = batch(*of_table(source, output), "--resume")
    assert done.code == 3 and f"{(1, 3, 4)[kept]} done before" in done.err
    assert output.read_bytes() == whole and errors.read_bytes() == told
    errors.write_bytes(b"".join(lines[1:]))  # this is no loss of power
    assert "nothing to do" in batch(*of_table(source, output), "--resume").err
    assert output.read_bytes() == whole
