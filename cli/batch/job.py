"""A batch that is ready to run: the input is looked through, the model loaded, and the answers written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from specx.backends.errors import DoesNotFitError
from specx.cli.batch.options import OutputOptions
from specx.cli.batch.progress import Reporter
from specx.cli.batch.reading import Input
from specx.cli.generation import Request, check_tokens, load_session
from specx.cli.terminal.console import notice
from specx.cli.terminal.interrupts import on_stop
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Item, Reader, Reading
from specx.engine.batch.lines import Form
from specx.engine.batch.output import Output, open_output
from specx.engine.batch.resume import Finished, Made, Skipper
from specx.engine.batch.sink import Sink
from specx.engine.batch.survey import Survey, context_for, survey
from specx.engine.settings import Asked

if TYPE_CHECKING:
    from specx.engine.batch.run import Run
    from specx.engine.session import Session

__all__ = ["SOME_FAILED", "TOO_MANY_FAILED", "Job"]

SOME_FAILED = 3
"""Exit code: every request has its record, and some are errors."""

TOO_MANY_FAILED = 4
"""Exit code: more failed than --max-errors allows, and the rest was not begun."""

SIGNALLED = 128
"""With the number of a signal, the exit code of what it ended, as shells have it."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One batch.

    Attributes:
        asked: what was asked for of the model.
        request: how answers are made.
        options: what was asked for of the output.
        source: the input.
        how: how it is read.
        reader: its items, none of them taken yet.
        form: how records are written.
        made: what the output is made with.
        found: what it holds already; None begins it anew.
        records: the file or stream of the output.
        trained: tokens of context that the model was trained for; 0 if that is unknown.
        signalled: the number of the signal that ended it; 0 for none.
    """

    asked: Asked
    request: Request
    options: OutputOptions
    source: Input
    how: Reading
    reader: Reader
    form: Form
    made: Made
    found: Finished | None
    records: Sink
    trained: int
    signalled: int = 0

    def run(self) -> int:
        """Answer what is not answered yet; returns the exit code.

        Raises:
            SpecxError: the model cannot be loaded, or the input or the output cannot be used any further.
        """
        looked = self._look() if self.source.regular else None
        failed = self.found.failed if self.found else 0
        with ExitStack() as stack:
            if looked is not None and looked.items == looked.answered:
                stack.enter_context(closing(self._output()))
                if not self.options.quiet:
                    what = "all of it is answered" if looked.items else "it is empty"
                    notice(f"{self.source.name}: {what}, nothing to do")
                return SOME_FAILED if failed else 0
            session = self._load(stack, looked)
            output = stack.enter_context(closing(self._output()))
            before = 0 if looked is None else looked.answered
            total = None if looked is None else looked.items
            reporter = Reporter(total, (before, failed), self._mode())
            stack.callback(reporter.close)
            return self._answer(session, output, reporter)

    def _look(self) -> Survey:
        """What is in the input, and whether it is still what the output answers."""
        return survey(self.reader, self._skipper(), self.request.options.n_predict)

    def _skipper(self) -> Skipper | None:
        if self.found is None:
            return None
        ordered, name = not self.options.unordered, self.records.name
        return Skipper(self.found.digests, ordered=ordered, output=name)

    def _output(self) -> Output:
        path = self.options.output
        if path is None:
            return Output(self.form, self.records, begin=True)
        return open_output(self.records, path, self.form, self.made, self.found)

    def _load(self, stack: ExitStack, looked: Survey | None) -> Session:
        """The model, with room for the largest item unless somebody said how much."""
        asked, request = self.asked, self.request
        if request.options.n_predict == 0:
            asked = replace(asked, measure=False)
        if looked is not None:
            asked = replace(asked, answers=looked.items - looked.answered)
        enough = asked
        if looked is not None and asked.n_ctx is None:
            n_ctx = context_for(looked.largest, asked.model, request.options.n_predict)
            enough = replace(asked, n_ctx=min(n_ctx, self.trained or n_ctx))
        quiet = self.options.quiet or self.options.json
        try:
            session = stack.enter_context(load_session(enough, quiet=quiet))
        except DoesNotFitError:
            if enough is asked:
                raise
            session = stack.enter_context(load_session(asked, quiet=quiet))
        check_tokens(session, request.sampling)
        return session

    def _answer(self, session: Session, output: Output, reporter: Reporter) -> int:
        """Answer all items and write what comes of them; returns the exit code."""
        from specx.engine.api.asks import Defaults
        from specx.engine.batch.run import Run

        options = self.request.options
        defaults = Defaults(
            sampling=self.request.sampling,
            n_predict=None if options.n_predict < 0 else options.n_predict,
            stop=tuple(options.stop or ()),
            grammar=self.request.grammar,
            ignore_eos=options.ignore_eos,
            model=session.model_name,
        )
        skipper = self._skipper()
        feed = Feed(self._items(skipper), slow=not self.source.regular)
        ordered = not self.options.unordered
        run = Run(session, feed, defaults, self.made.seed, ordered=ordered, written=reporter.written)
        most, too_many = self.options.max_errors, False
        with on_stop(partial(self._stop, run)):
            for answered in run.answers():
                output.write(answered)
                reporter.add(answered)
                if most is not None and reporter.failed > most and not too_many:
                    too_many = True
                    run.stop()
        remaining = reporter.remaining
        reporter.finish(self.made.seed, remaining)
        if self.signalled and remaining != 0:
            return SIGNALLED + self.signalled
        if too_many and remaining != 0:
            return TOO_MANY_FAILED
        if skipper is not None and not self.source.regular:
            skipper.check_end()
        return SOME_FAILED if output.failed else 0

    def _items(self, skipper: Skipper | None) -> Iterable[Item]:
        reader = self.source.reader(self.how) if self.source.regular else self.reader
        return reader if skipper is None else (item for item in reader if not skipper.skip(item))

    def _stop(self, run: Run, number: int) -> None:
        """A signal has come: the first one lets finish what was begun, a second one drops it."""
        if self.signalled:
            run.drop()
            return
        self.signalled = number
        run.stop()
        name = signal.Signals(number).name
        text = f"{name}: finishing {run.in_progress} requests that were begun; once more drops them\n"
        if not self.options.quiet and not self.options.json:
            with suppress(OSError):  # and not through a stream that it may have interrupted
                os.write(2, text.encode())

    def _mode(self) -> str:
        """How progress is told."""
        if self.options.json:
            return "json"
        if self.options.quiet:
            return "quiet"
        # A bar would stand among the answers if both went to one terminal.
        to_terminal = self.options.output is None and sys.stdout.isatty()
        return "bar" if sys.stderr.isatty() and not to_terminal else "log"
