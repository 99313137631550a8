"""What stands beside an output whose records do not say themselves what they answer.

`OUTPUT.batch` has, behind its first line, a line for each record: the digest of the item, the length of the
record, its checksum, and whether it stands for an error. `OUTPUT.errors.jsonl` has the errors. A loss of
power may cut off its end as that of any file: then what failed last is asked again. If it is gone, or was
edited, nothing about the output follows.
"""

from __future__ import annotations

import os
import stat
import tempfile
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from specx.engine.batch.lines import digest_of
from specx.engine.batch.tally import Tally

__all__ = ["Entry", "Found", "match", "renew", "renew_errors", "told"]

PIECE = 1 << 16
BIGGEST = 1 << 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A line for a record.

    Attributes:
        digest: of the item.
        length: bytes of the record.
        checksum: of these.
        failed: there is an error in the place of an answer.
    """

    digest: int
    length: int
    checksum: int
    failed: bool

    @classmethod
    def of(cls, digest: str, record: bytes, *, failed: bool) -> Entry:
        """The line of a `record` for the item with a `digest`."""
        return cls(int(digest, 16), len(record), crc32(record), failed)

    @classmethod
    def read(cls, line: bytes) -> Entry | None:
        """The entry of a whole line; None if it is none."""
        try:
            digest, length, checksum, failed = line.removesuffix(b"\n").split(b" ")
            entry = cls(int(digest, 16), int(length), int(checksum, 16), failed == b"1")
        except ValueError:
            return None
        possible = 0 <= entry.digest < BIGGEST and entry.length > 0
        return entry if possible and entry.line() == line else None

    def line(self) -> bytes:
        """As it is written."""
        return f"{self.digest:016x} {self.length} {self.checksum:08x} {self.failed:d}\n".encode()


@dataclass(slots=True)
class Found:
    """Which records an output has.

    Attributes:
        end: bytes of it up to the last record.
        digests: of the items that its records answer, in their order.
        failures: those of them that have an error in the place of an answer.
        failed_at: for each of these its index in `digests`, where its record begins, and its line's number.
        removed: numbers of the lines, from 0, whose record is not there while a later one is.
        unchanged: what follows was not written by anybody else: it is torn, or was written last.
    """

    end: int
    digests: array[int] = field(default_factory=lambda: array("Q"))
    failures: array[int] = field(default_factory=lambda: array("Q"))
    failed_at: array[int] = field(default_factory=lambda: array("Q"))
    removed: array[int] = field(default_factory=lambda: array("Q"))
    unchanged: bool = True


def match(journal: Iterable[bytes], records: BinaryIO, begin: int) -> Found:
    """Find the record of each line; what is not there was removed, and the next line is looked at.

    Args:
        journal: the lines, without the first one.
        records: the output.
        begin: bytes of it before the first record.
    """
    found = Found(begin)
    size = records.seek(0, os.SEEK_END)
    missing = array("Q")  # lines since the last one whose record was found
    longest = 0  # bytes of a record that belongs to these
    for number, line in enumerate(journal):
        entry = Entry.read(line)
        if entry is None:
            break
        records.seek(found.end)
        there = entry.length <= size - found.end
        if not there or crc32(records.read(entry.length)) != entry.checksum:
            missing.append(number)
            longest = max(longest, min(entry.length, size))
            continue
        found.removed.extend(missing)
        missing, longest = array("Q"), 0
        if entry.failed:
            found.failures.append(entry.digest)
            found.failed_at.extend((len(found.digests), found.end, number))
        found.end += entry.length
        found.digests.append(entry.digest)
    if missing or found.removed:  # otherwise the lines that are lacking were not written any more
        records.seek(found.end)
        found.unchanged = _is_torn(records, longest)
    return found


def _is_torn(records: BinaryIO, longest: int) -> bool:
    """Whether what follows is nothing, or the beginning of a record that has up to `longest` bytes; a loss of
    power may leave zeros in the place of the rest."""
    data = records.read(longest)
    while piece := records.read(PIECE):
        if piece.strip(b"\0"):
            return False
    data = data.rstrip(b"\0")
    # A row ends within quotes if it is torn at the end of a line in a cell.
    return (len(data) < longest and (not data.endswith(b"\n") or data.count(b'"') % 2 == 1)) or not data


def told(found: Found, errors: Path) -> Found:
    """`found` as far as the file of errors tells what failed, where the end of that file is lacking.

    Raises:
        OSError: it cannot be read.
    """
    if not errors.exists():
        return found
    with errors.open("rb") as lines:
        said = (digest_of(line) for line in lines if line.endswith(b"\n"))
        known = Tally(int(each[0], 16) for each in said if each is not None)
    last = len(found.failures)
    for i, digest in enumerate(found.failures):
        if known.get(digest):
            if last < i:
                return found  # a later one is told: it was edited
            known.add(digest, -1)
        else:
            last = min(last, i)
    if last == len(found.failures):
        return found
    count, end, line = found.failed_at[3 * last : 3 * last + 3]
    removed = array("Q", (number for number in found.removed if number < line))
    return Found(end, found.digests[:count], found.failures[:last], removed=removed)


def renew(made: Path, first: bytes, count: int, removed: Collection[int]) -> None:
    """Bring `OUTPUT.batch` to what the output has.

    Args:
        made: the file.
        first: its first line from now on.
        count: of the others, how many there are up to that of the last record.
        removed: numbers of those that have no record any more.
    """
    left_out = frozenset(removed)
    with made.open("rb") as old:
        same = old.readline() == first and not left_out
        others = islice(old, count)
        if same:
            size = len(first) + sum(map(len, others))
        else:
            _replace(made, first, (line for i, line in enumerate(others) if i not in left_out))
    if same:
        os.truncate(made, size)


def renew_errors(errors: Path, failures: Iterable[int]) -> None:
    """Leave in the file of errors those of items that failed: an item whose record is not there any more is
    asked again. Lines that were not written by a batch stay as they are."""
    if not errors.exists():
        return
    failed = Tally(failures)

    def stays(line: bytes) -> bool:
        said = digest_of(line)
        return line.endswith(b"\n") and (said is None or bool(failed.get(int(said[0], 16))))

    with errors.open("rb") as old:
        if not all(map(stays, old)):
            old.seek(0)
            _replace(errors, b"", filter(stays, old))


def _replace(path: Path, first: bytes, lines: Iterable[bytes]) -> None:
    """Put a new file in the place of one: whatever ends this, one of both is there."""
    path = path.resolve()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as new:
        temporary = Path(new.name)
        try:
            new.write(first)
            new.writelines(lines)
            new.flush()
            os.fsync(new.fileno())
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
