"""What is asked for, item by item: from OpenAI's batch lines, request bodies, tables and plain lines.

What is wrong with one item is its own `problem`; the items after it go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from typing import Any, NoReturn

from specx.backends.errors import UsageError
from specx.engine.api.paths import CHAT, COMPLETIONS
from specx.engine.batch.source import LONGEST, Line, decoded
from specx.engine.batch.table import Row, Table
from specx.engine.batch.tally import Tally
from specx.engine.batch.template import LINE_FIELDS, Template

__all__ = [
    "BODY",
    "DUPLICATE",
    "FORMATS",
    "OPENAI",
    "ROW",
    "Item",
    "Reader",
    "Reading",
]

FORMATS = ("jsonl", "lines", "csv", "tsv")
OPENAI, BODY, ROW = "openai", "body", "row"
"""Forms of an item: a line of OpenAI's batches, a request body, a text."""

DUPLICATE = "duplicate_custom_id"
UNUSED = frozenset({"stream", "stream_options"})  # a batch gives whole answers
ENVELOPE = frozenset({"body", "url", "method"})
ASKED = frozenset({"messages", "prompt"})  # of a body itself
BLANK = "0" * 16  # digest of an empty line
MOST_DIGITS = 300  # of a whole number: any of these is a finite number with a fraction, too
BIGGEST_SEED = 1 << 53  # the whole numbers that JSON carries everywhere

Problem = tuple[str, str | None]
"""What is wrong with an item, and a word for programs."""


@dataclass(slots=True, eq=False)
class Item:
    """One request. Nothing changes it once it was read.

    Attributes:
        number: its place among the items, from 0.
        line: of the input where it begins, from 1.
        form: `OPENAI`, `BODY` or `ROW`.
        digest: 16 hex digits that depend on what is asked, on `custom_id` and, without one, on how many items
            before it ask the same.
        path: `CHAT` or `COMPLETIONS`.
        body: of the request; what JSON holds.
        custom_id: what the person calls it; any JSON value if that is its `problem`.
        problem: why it cannot be asked, if it cannot.
        cells: of a table's row.
        blank: nothing is asked: an empty line that has an empty line in the output.
    """

    number: int
    line: int
    form: str
    digest: str = ""
    path: str = CHAT
    body: Any = None
    custom_id: Any = None
    problem: Problem | None = None
    cells: tuple[str, ...] = ()
    blank: bool = False

    def seed(self, base: int) -> int:
        """The seed of the item where it brings none: a function of `base` and of `custom_id`, or without one
        of what is asked. Neither its place nor its company matters."""
        named = isinstance(self.custom_id, str) and self.problem is None
        key = f"{base}:{self.custom_id if named else self.digest}"
        digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % BIGGEST_SEED

    @property
    def row_digest(self) -> str:
        """16 hex digits that depend on all cells of a table's row as well, whether they are asked or not."""
        return _digest(self.digest, self.cells)

    @property
    def label(self) -> str:
        """What a message calls it."""
        named = f" ({self.custom_id})" if isinstance(self.custom_id, str) else ""
        return f"line {self.line}{named}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How an input is read.

    Attributes:
        format: of `FORMATS`.
        name: what messages call the input.
        template: the prompt, with gaps for columns, fields or lines.
        chat: whether texts become the message of a user, or are continued as they stand.
        system: the system message of such a conversation.
        fields: of a request body, where an item does not have them itself.
        keep_blank: an empty line is an item, too.
        unique: it is known that no `custom_id` is there twice, so they need not be remembered.
        longest: bytes of a line.
    """

    format: str
    name: str = "the input"
    template: Template | None = None
    chat: bool = True
    system: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    keep_blank: bool = False
    unique: bool = False
    longest: int = LONGEST


class _ProblemError(Exception):
    """An item cannot be asked."""


class Reader:
    """Reads the items of one input.

    Args:
        how: how it is read.
        lines: of the input.

    Attributes:
        table: its columns, of a table.

    Raises:
        UsageError: a table has no header, or the template does not suit it.
    """

    def __init__(self, how: Reading, lines: Iterator[Line]) -> None:
        self._how, self._lines = how, lines
        self._number = 0
        self._ids = Tally()  # the line of each custom_id, by its hash
        self._seen = Tally()  # how many items have each digest
        bodies = how.format == "jsonl" and how.template is None
        self._form = BODY if bodies else ROW  # of the lines so far: what a broken one takes
        self.table: Table | None = None
        if how.format in ("csv", "tsv"):
            self.table = Table(lines, name=how.name, tabs=how.format == "tsv")
            self._check_columns(self.table.columns)
        elif how.format == "lines" and how.template is not None:
            how.template.check(LINE_FIELDS, "a line")

    def __iter__(self) -> Iterator[Item]:
        if self.table is not None:
            for row in self.table:
                yield self._finished(self._of_row(row))
            return
        for line in self._lines:
            if line.content.strip():
                yield self._finished(self._of_line(line))
            elif self._how.keep_blank:
                yield self._finished(Item(0, line.number, ROW, BLANK, blank=True))

    def _check_columns(self, columns: tuple[str, ...]) -> None:
        template = self._how.template
        if template is not None:
            alone = columns if columns.count("") == 1 else tuple(filter(None, columns))
            template.check(alone, self._how.name)
        elif "prompt" not in columns:
            shown = ", ".join(columns[:20])
            raise UsageError(
                f"{self._how.name} has no column `prompt`, and there is no template (columns: {shown})",
                f"say what to ask of a row: --template 'Summarize: {{{columns[0]}}}'",
            )

    def _of_line(self, line: Line) -> Item:
        item = Item(0, line.number, self._form)
        try:
            if not line.whole:
                raise _ProblemError(f"it is longer than {self._how.longest:,} bytes")
            text = decoded(line.content)
            if self._how.format == "lines":
                self._of_text(item, text, dict.fromkeys(LINE_FIELDS, text))
            else:
                self._of_value(item, _parsed(text))
        except (_ProblemError, ValueError) as problem:
            item.problem = (f"line {line.number}: {problem}", None)
            item.digest = _digest_of(line.content)
        return item

    def _of_text(self, item: Item, text: str, values: Mapping[str, Any]) -> None:
        """The request of a plain line, a row or an object that a template is filled from."""
        template = self._how.template
        if template is not None:
            try:
                text = template.fill(values)
            except KeyError as missing:
                raise _ProblemError(f"there is no field {missing.args[0]!r}") from None
        if not self._how.chat:
            self._ask(item, COMPLETIONS, {"prompt": text})
            return
        system = [] if self._how.system is None else [{"role": "system", "content": self._how.system}]
        self._ask(item, CHAT, {"messages": [*system, {"role": "user", "content": text}]})

    def _of_value(self, item: Item, value: Any) -> None:
        """The request of a JSON value."""
        if not isinstance(value, dict):
            raise _ProblemError("it is no JSON object")
        filled = self._how.template is not None
        if not filled and ENVELOPE & value.keys() and not ASKED & value.keys():
            self._form = item.form = OPENAI
            self._of_envelope(item, value)
            return
        self._form = item.form = ROW if filled else BODY
        item.custom_id = value.get("custom_id")
        if item.custom_id is not None and not isinstance(item.custom_id, str):
            raise _ProblemError("custom_id is no string")
        if filled:
            self._of_text(item, "", value)
            return
        body = {name: own for name, own in value.items() if name != "custom_id"}
        if ("messages" in body) == ("prompt" in body):
            both = "both messages and a prompt" if "messages" in body else "neither messages nor a prompt"
            raise _ProblemError(f"it has {both}")
        self._ask(item, CHAT if "messages" in body else COMPLETIONS, body)

    def _of_envelope(self, item: Item, value: Mapping[str, Any]) -> None:
        """The request of a line of OpenAI's batches."""
        item.custom_id = value.get("custom_id")
        method, path = value.get("method", "POST"), value.get("url")
        problem = None
        if not isinstance(item.custom_id, str):
            problem = "custom_id is no string" if "custom_id" in value else "custom_id is missing"
        elif method != "POST":
            problem = f"method is {_shown(method)}, and only POST is known"
        elif path not in (CHAT, COMPLETIONS):
            problem = f"url is {_shown(path)}; known are {CHAT} and {COMPLETIONS}"
        elif not isinstance(value.get("body"), dict):
            problem = "body is no object" if "body" in value else "body is missing"
        if problem is not None:
            raise _ProblemError(problem)
        self._ask(item, str(path), value["body"])

    def _of_row(self, row: Row) -> Item:
        assert self.table is not None
        item = Item(0, row.line, ROW, cells=row.cells)
        if row.problem is not None:
            item.problem = (f"line {row.line}: {row.problem}", None)
            item.digest = _digest(row.cells)
            return item
        values = dict(zip(self.table.columns, row.cells, strict=True))
        self._of_text(item, values.get("prompt", ""), values)
        return item

    def _ask(self, item: Item, path: str, body: Mapping[str, Any]) -> None:
        """Give `item` its request, and a digest of all that makes its answer, but not of the spelling."""
        try:
            item.digest = _digest(item.custom_id, path, body)
        except (RecursionError, ValueError) as problem:
            raise _ProblemError("it is nested too deep") from problem
        item.path = path
        item.body = {name: value for name, value in body.items() if name not in UNUSED}
        for name, value in self._how.fields.items():
            if item.body.get(name) is None:
                item.body[name] = value

    def _finished(self, item: Item) -> Item:
        """`item` with its number, and unlike every other before it."""
        named = isinstance(item.custom_id, str)
        first = item.line
        if named and not self._how.unique:
            first = self._ids.set_default(hash(item.custom_id), item.line)
        if first != item.line:
            text = f'custom_id "{item.custom_id}" is on line {first} and again on line {item.line}'
            item.problem = (text, DUPLICATE)
        if not named or first != item.line:
            before = self._seen.add(int(item.digest, 16), 1) - (not named)
            if before:
                item.digest = _digest(item.digest, before)
        item.number = self._number
        self._number += 1
        return item


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise _ProblemError("it is nested too deep") from None
    except json.JSONDecodeError as problem:
        raise _ProblemError(f"it is not valid JSON: {problem.msg} at character {problem.pos + 1}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise _ProblemError(f"it has a number that is too large: {text[:60]}")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _ProblemError("it has a number with too many digits")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise _ProblemError(f"it is not valid JSON: {name} is no number")


def _digest(*parts: Any) -> str:
    """16 hex digits of JSON values, the order of their fields aside."""
    return _digest_of(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


def _digest_of(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
