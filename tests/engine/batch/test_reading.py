"""Lines, tables, templates and the items that are read from them."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.backends.errors import FileError, UsageError
from specx.engine.api.paths import CHAT, COMPLETIONS
from specx.engine.batch.items import BODY, DUPLICATE, OPENAI, ROW, Reader, Reading
from specx.engine.batch.source import read_lines
from specx.engine.batch.table import Dialect, Table
from specx.engine.batch.template import Template


def lines_of(data, longest=100):
    return list(read_lines(io.BytesIO(data), "in", longest))


def items_of(data, form="jsonl", **how):
    if isinstance(data, list):
        data = "".join(json.dumps(value) + "\n" for value in data).encode()
    how = Reading(form, **how)
    return list(Reader(how, read_lines(io.BytesIO(data), "in", how.longest)))


@given(st.lists(st.binary(max_size=30).filter(lambda data: b"\n" not in data)), st.booleans())
def test_lines_are_those_of_the_file(contents, ended):
    data = b"\n".join(contents) + b"\n" * ended
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return
    lines = lines_of(data)
    assert b"".join(line.data for line in lines) == data.removeprefix(b"\xef\xbb\xbf")
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(line.whole for line in lines)


@given(st.integers(90, 300), st.booleans())
def test_a_line_that_is_too_long_is_passed_over(length, ended):
    data = b"a\n" + b"x" * length + b"\n" * ended
    first, long, *rest = lines_of(data + (b"b" if ended else b""), longest=100)
    assert first.content == b"a" and long.whole == (length <= 100)
    assert [line.content for line in rest] == ([b"b"] if ended else [])
    assert long.content == b"x" * length if long.whole else len(long.data) == 100


def test_a_file_that_cannot_be_read_any_further():
    class Broken(io.BytesIO):
        def readline(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(FileError, match="cannot read in: Input/output error"):
        list(read_lines(Broken(), "in"))


def test_templates():
    template = Template("{{}} {a} {First Name}: {a}{{b}}")
    assert template.fields == ("a", "First Name")
    assert template.fill({"a": "{x}", "First Name": 'ü"'}) == '{} {x} ü": {x}{b}'
    assert template.fill({"a": [1, None], "First Name": 2.5}) == "{} [1, null] 2.5: [1, null]{b}"
    with pytest.raises(KeyError):
        template.fill({"a": 1})
    for wrong in ("{a", "a}", "{a!r}", '{"x": 1}', "{a:3}"):
        with pytest.raises(UsageError, match="--template"):
            Template(wrong)


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5), st.sampled_from(",;\t"))
def test_tables_are_read_as_they_are_written(rows, delimiter):
    dialect = Dialect(delimiter)
    data = b"".join(dialect.row(row) for row in [["a", "b"], *rows])
    table = Table(iter(lines_of(data, 10_000)), name="in", tabs=delimiter == "\t")
    assert table.columns == ("a", "b") and table.dialect == dialect
    found = list(table)
    assert [list(row.cells) for row in found] == rows
    assert all(row.problem is None for row in found)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'a,b\n1,"2\n3,4\n', 2),
        (b'a,b\n1,2\n"3\n",4\n"5\n6","7\n8,9', 6),
        (b'a,b\n1,"2\n3"" 4\n', 2),
        (b'a,b\n1,2\n3,"', 3),
        (b'a,"b\n1,2\n', 1),
    ],
)
def test_a_quote_that_is_left_open(data, line):
    with pytest.raises(UsageError, match=f"line {line} of in opens a quote"):
        list(Table(iter(lines_of(data)), name="in", tabs=False))


@pytest.mark.parametrize("data", [b'a,b\n1,"2"', b'a,b\n1,"2\n"\n', b'a,b\n1,2"\n', b'a,b\n1,""'])
def test_quotes_that_are_not_left_open(data):
    assert [row.line for row in Table(iter(lines_of(data)), name="in", tabs=False)] == [2]


def test_forms_of_items():
    items = items_of(
        [
            {"custom_id": "x", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "a"}},
            {"messages": [], "stream": True},
            {"prompt": [1, 2]},
        ]
    )
    assert [(item.form, item.path) for item in items] == [
        (OPENAI, COMPLETIONS),
        (BODY, CHAT),
        (BODY, COMPLETIONS),
    ]
    assert [item.number for item in items] == [0, 1, 2] and [item.line for item in items] == [1, 2, 3]
    assert items[1].body == {"messages": []} and items[0].custom_id == "x"
    (row,) = items_of(b"hello\n", "lines", chat=False)
    assert (row.form, row.path, row.body) == (ROW, COMPLETIONS, {"prompt": "hello"})


def test_a_broken_line_has_the_form_of_those_before_it():
    line = {"custom_id": "x", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "a"}}
    data = json.dumps(line).encode() + b"\n{\n"
    assert [item.form for item in items_of(data)] == [OPENAI, OPENAI]
    assert [item.form for item in items_of(b"{\n" + data)] == [BODY, OPENAI, OPENAI]


def test_fields_that_all_requests_get():
    kept, given_ = items_of([{"prompt": "a", "n": 2}, {"prompt": "a", "n": None}], fields={"n": 5})
    assert kept.body["n"] == 2 and given_.body["n"] == 5


def test_digests_depend_on_what_is_asked():
    a, spelled, other, again = items_of(
        b'{"prompt": "a", "n": 1}\n{"n":1,  "prompt":"\\u0061"}\n'
        b'{"prompt": "b", "n": 1}\n{"prompt": "a", "n": 1}\n'
    )
    first, *_ = items_of(b'{"n": 1, "prompt": "a"}')
    assert a.digest == first.digest  # neither spelling nor place
    assert len({a.digest, spelled.digest, other.digest, again.digest}) == 4  # equal ones are counted
    named, renamed = items_of([{"custom_id": "x", "prompt": "a"}, {"custom_id": "y", "prompt": "a"}])
    assert named.digest != renamed.digest
    assert all(len(item.digest) == 16 and int(item.digest, 16) >= 0 for item in (a, named))


def test_digests_of_rows_depend_on_all_cells():
    template = Template("{a}")
    (row,) = items_of(b"a,b\n1,2\n", "csv", template=template)
    (other,) = items_of(b"a,b\n1,3\n", "csv", template=template)
    assert row.digest == other.digest and row.row_digest != other.row_digest
    assert row.seed(1) == other.seed(1)


def test_seeds_follow_from_the_name_or_from_what_is_asked():
    def one(value, before=()):
        return items_of([*before, value])[-1]

    named = one({"custom_id": "x", "prompt": "a"})
    assert named.seed(1) == one({"custom_id": "x", "prompt": "b"}, [{"prompt": "c"}]).seed(1)
    assert named.seed(1) != named.seed(2) != one({"custom_id": "y", "prompt": "a"}).seed(2)
    text = one({"prompt": "a"})
    assert text.seed(1) == one({"prompt": "a"}, [{"prompt": "c"}]).seed(1)
    assert text.seed(1) != one({"prompt": "a"}, [{"prompt": "a"}]).seed(1)
    assert 0 <= text.seed(3) < 2**53


def test_duplicates_are_problems_of_the_second():
    items = items_of([{"custom_id": name, "prompt": "a"} for name in ("x", "y", "x", "x")])
    assert [item.problem is None for item in items] == [True, True, False, False]
    assert items[3].problem == ('custom_id "x" is on line 1 and again on line 4', DUPLICATE)
    assert len({item.digest for item in items}) == 4


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12))
def test_no_two_items_have_one_digest(words):
    digests = [item.digest for item in items_of("".join(f"{word}\n" for word in words).encode(), "lines")]
    assert len(set(digests)) == len(words)


@given(st.binary(max_size=200))
def test_whatever_is_read_becomes_items(data):
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return
    for form in ("jsonl", "lines"):
        for item in items_of(data, form):
            assert (item.problem is None) == (item.body is not None) and item.digest
    try:
        items = items_of(data, "csv", template=Template("x"))
    except UsageError:
        return
    assert all(item.digest for item in items)
