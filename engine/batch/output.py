"""The output of a batch: records, what goes on record beside them, and what failed."""

from __future__ import annotations

import os
from pathlib import Path

from specx.backends.errors import FileError, UsageError
from specx.engine.batch.answered import Answered
from specx.engine.batch.journal import Entry, renew, renew_errors
from specx.engine.batch.lines import Form, error_record
from specx.engine.batch.resume import Finished, Made, errors_path, is_ours, made_path
from specx.engine.batch.sink import Sink

__all__ = ["Output", "check_beside", "open_output"]


class Output:
    """Where records go.

    Args:
        form: how they are written.
        records: takes them.
        journal: takes which items they answer, where they do not say so themselves.
        errors: the file that takes what failed, where records have no room for it; made with the first error.
        failed: how many of the records that are there already are errors.
        begin: write what an output begins with.

    Attributes:
        failed: how many records are errors, those that were there before included.
    """

    def __init__(
        self,
        form: Form,
        records: Sink,
        *,
        journal: Sink | None = None,
        errors: Path | None = None,
        failed: int = 0,
        begin: bool = False,
    ) -> None:
        self.failed = failed
        self._form, self._records, self._journal = form, records, journal
        self._errors_path = errors
        self._errors: Sink | None = None
        if begin:
            records.write(form.header())

    def write(self, answered: Answered) -> None:
        """Add the record of an item, whole.

        Raises:
            BrokenPipeError: nobody reads any more.
            SpecxError: it cannot be written; what was written before it is whole.
        """
        if answered.failed:
            self.failed += 1
            if self._errors_path is not None and not self._form.named:
                self._write_error(self._errors_path, answered)
        record = self._form.record(answered)
        self._records.write(record)
        if self._journal is not None and not self._form.named:
            entry = Entry.of(self._form.digest(answered.item), record, failed=answered.failed)
            self._journal.write(entry.line())

    def check(self) -> None:
        """Whether what was written is still where it was written to.

        Raises:
            FileError: it is not.
        """
        self._records.check()

    def close(self) -> None:
        """Everything is written."""
        for sink in (self._errors, self._records, self._journal):
            if sink is not None:
                sink.close()

    def _write_error(self, path: Path, answered: Answered) -> None:
        if self._errors is None:
            self._errors = Sink(path, path.name)
        self._errors.write(error_record(answered, self._form.digest(answered.item)))


def check_beside(output: Path, source: int | None, *, ours: bool) -> None:
    """Whether the files beside an output may be written, begun anew and removed.

    Args:
        output: its name.
        source: the descriptor of an input in a file, which none of them must be.
        ours: they are known to be of this output, or may be lost.

    Raises:
        UsageError: one is the input, or nothing says that it was written by a batch.
    """
    made, errors = made_path(output), errors_path(output)
    for path in (made, errors):
        if source is not None and path.exists() and os.path.samestat(path.stat(), os.fstat(source)):
            raise UsageError(
                f"{path}, which is written beside the output, is the input as well", "choose another output"
            )
    begun = made.is_file() and not made.stat().st_size  # and ended before it was said how: nothing is lost
    there = [path for path in (made, errors) if os.path.lexists(path) and not (begun and path == made)]
    if there and not ours and not is_ours(made):
        raise UsageError(
            f"{there[0]} is there already, and was not written by a batch",
            "move it, choose another output, or overwrite it with --force",
        )


def open_output(records: Sink, path: Path, form: Form, made: Made, found: Finished | None) -> Output:
    """An output in a file: begun, or gone on with where `found` ends.

    Args:
        records: the file, open; what is not a regular file only takes records.
        path: its name.
        form: how records are written.
        made: what it is made with.
        found: what it holds; None begins anew.

    Raises:
        FileError: a file beside it cannot be written.
    """
    if not records.regular:
        return Output(form, records, begin=True)
    errors, beside = errors_path(path), made_path(path)
    if found is not None:
        _renew_beside(path, form, made, found)
    journal = Sink(beside, str(beside))
    if found is None:
        found = Finished()
        records.cut(0)  # before it is said how it is made
        errors.unlink(missing_ok=True)
        journal.cut(0)
        journal.write(made.line())
        journal.sync()
    else:
        records.cut(found.keep)
        if found.newline:
            records.write(b"\n")
    return Output(
        form,
        records,
        journal=journal,
        errors=errors,
        failed=found.failed,
        begin=records.size == 0,
    )


def _renew_beside(path: Path, form: Form, made: Made, found: Finished) -> None:
    """Bring the files beside an output to what it holds."""
    count = 0 if form.named else len(found.digests) + len(found.removed)
    try:
        renew(made_path(path), made.line(), count, found.removed)
        if not form.named:
            renew_errors(errors_path(path), found.failures)
    except OSError as problem:
        raise FileError(
            f"cannot write beside {path}: {problem.strerror}", "make room, or choose another place"
        ) from problem
