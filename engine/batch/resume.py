"""What an output holds already, after whatever ended the run that wrote it.

Records of `JsonLines` say themselves which items they answer. For texts and tables `OUTPUT.batch` says it
(see `specx.engine.batch.journal`). What it has of a record is written last, so the record is there, unless a
loss of power took the end of a file or somebody removed it: then its item is asked again.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specx.backends.errors import FileError, UsageError
from specx.engine.batch.items import Item
from specx.engine.batch.journal import match, told
from specx.engine.batch.lines import digest_of
from specx.engine.batch.tally import Tally

__all__ = ["Finished", "Made", "Skipper", "errors_path", "finished", "is_ours", "made_path"]

VERSION = 2
ANEW = "give what it was begun with, or begin anew with --force"


def made_path(output: Path) -> Path:
    """The file beside an output that says how it is made."""
    return output.with_name(f"{output.name}.batch")


def errors_path(output: Path) -> Path:
    """The file beside an output of texts or of a table that has what failed."""
    return output.with_name(f"{output.name}.errors.jsonl")


def is_ours(made: Path) -> bool:
    """Whether a file says, by its first line, how an output is made."""
    try:
        return "specx_batch" in _said(made)
    except (OSError, ValueError, RecursionError):
        return False


def _said(made: Path) -> dict[str, Any]:
    """The object in the first line of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: that is no object.
        RecursionError: it is nested too deep.
    """
    with made.open("rb") as file:
        value = json.loads(file.readline())
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


@dataclass(frozen=True, slots=True)
class Made:
    """What an output is made with.

    Attributes:
        settings: what its answers depend on besides the items: option -> value.
        seed: what the seeds of items follow from.
        unordered: its records are in any order.
    """

    settings: Mapping[str, Any]
    seed: int
    unordered: bool = False

    def line(self) -> bytes:
        """The first line of `OUTPUT.batch`."""
        order = {"seed": self.seed, "unordered": self.unordered}
        value = {"specx_batch": VERSION, **order, "settings": self.settings}
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def read(cls, output: Path) -> Made:
        """What `output` was made with.

        Raises:
            FileError: nothing says so.
        """
        path = made_path(output)
        try:
            value = _said(path)
            if value["specx_batch"] == VERSION:
                return cls(dict(value["settings"]), int(value["seed"]), bool(value["unordered"]))
        except FileNotFoundError:
            missing = f"there is no {path.name} beside it"
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            missing = f"{path.name} cannot be read ({getattr(problem, 'strerror', None) or 'it is damaged'})"
        else:
            missing = f"{path.name} is of another version of specx"
        raise FileError(
            f"{output} cannot be gone on with: {missing}, which says how it was made",
            "begin anew with --force, or choose another output",
        )

    def check(self, now: Mapping[str, Any], output: Path) -> None:
        """Whether it would be the same now.

        Raises:
            UsageError: a setting is another one; says which.
        """
        before = self.settings
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not names:
            return
        changes = [f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}" for name in names]
        raise UsageError(f"{output} was begun with other settings: {', '.join(changes)}", ANEW)


@dataclass(slots=True)
class Finished:
    """What an output holds.

    Attributes:
        digests: of the items that are answered, in the order of their records; 64 bits each.
        failed: how many of them have an error in the place of an answer.
        keep: bytes of the output that are whole records.
        newline: the last of them lacks the end of its line.
        failures: digests of those with an error, where records do not say so themselves.
        removed: numbers of the lines of `OUTPUT.batch` whose records are not there any more, but later ones.
    """

    digests: array[int] = field(default_factory=lambda: array("Q"))
    failed: int = 0
    keep: int = 0
    newline: bool = False
    failures: array[int] = field(default_factory=lambda: array("Q"))
    removed: array[int] = field(default_factory=lambda: array("Q"))


def finished(output: Path, header: bytes, *, named: bool) -> Finished:
    """What the records of `output` answer, and where what is whole ends.

    Args:
        output: the file.
        header: what it begins with.
        named: whether its records say which items they answer.

    Raises:
        FileError: it cannot be read, or something in it is no record.
    """
    try:
        return _of_records(output) if named else _of_journal(output, header)
    except OSError as problem:
        raise FileError(f"cannot read {output}: {problem.strerror}", "check its name") from problem


def _of_records(output: Path) -> Finished:
    found, end = Finished(), 0
    with output.open("rb") as file:
        for number, line in enumerate(file, 1):
            end += len(line)
            record = digest_of(line)
            whole = line.endswith(b"\n")
            if record is None and whole and line.strip(b"\0 \t\r\n"):
                raise FileError(
                    f"line {number} of {output} is no record of a batch",
                    "remove it, choose another output, or begin anew with --force",
                )
            if record is None:  # it is empty, or it is the last one and was torn
                continue
            found.digests.append(int(record[0], 16))
            found.failed += record[1]
            found.keep = end
            found.newline = not whole
    return found


def _of_journal(output: Path, header: bytes) -> Finished:
    changed = FileError(
        f"{output} was changed after it was written", "choose another output, or begin anew with --force"
    )
    with made_path(output).open("rb") as journal, output.open("rb") as records:
        journal.readline()
        begin = records.read(len(header))
        if begin != header:
            if records.read(1) or not header.startswith(begin.rstrip(b"\0")):
                raise changed
            return Finished()  # not even the header is whole
        found = match(journal, records, len(header))
    if not found.unchanged:
        raise changed
    found = told(found, errors_path(output))
    return Finished(
        found.digests,
        failed=len(found.failures),
        keep=found.end,
        failures=found.failures,
        removed=found.removed,
    )


class Skipper:
    """Leaves out what is answered already, and notices what is not the input it was.

    Args:
        digests: of the answered items, as of `Finished`.
        digest: that of an item, as of `Form`.
        ordered: the output is in the order of the input.
        output: what messages call the output.
    """

    def __init__(
        self, digests: array[int], digest: Callable[[Item], str], *, ordered: bool, output: str
    ) -> None:
        self._digests, self._digest, self._ordered, self._output = digests, digest, ordered, output
        self._next = 0
        self._counts = Tally(() if ordered else digests)
        self._unanswered: Item | None = None  # the first one

    def skip(self, item: Item) -> bool:
        """Whether it is answered. Equal items are counted: each record answers one of them.

        Raises:
            UsageError: an output in order answers something else in this place.
        """
        digest = int(self._digest(item), 16)
        if self._ordered:
            if self._next >= len(self._digests):
                return False
            if self._digests[self._next] != digest:
                raise UsageError(
                    f"the input was changed: {item.label} is not what was answered as number "
                    f"{self._next + 1} in {self._output}",
                    f"{ANEW}; --unordered answers what is new",
                )
            self._next += 1
            return True
        if self._counts.get(digest):
            self._counts.add(digest, -1)
            self._next += 1
            return True
        self._unanswered = self._unanswered or item
        return False

    @property
    def skipped(self) -> int:
        """How many were left out."""
        return self._next

    def check_end(self) -> None:
        """At the end of the input: whether all that was answered is asked.

        Raises:
            UsageError: some of it is not.
        """
        left = len(self._digests) - self._next
        if left <= 0:
            return
        example = f" (not answered is {self._unanswered.label})" if self._unanswered else ""
        raise UsageError(
            f"the input was changed: {left} answers in {self._output} belong to nothing in it{example}", ANEW
        )


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
