"""A batch that is ready to run: the input is looked through, the model loaded, and the answers written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from specx.backends.errors import FileError, SpecxError
from specx.cli import SIGNALLED
from specx.cli.batch.options import OutputOptions
from specx.cli.batch.progress import Reporter
from specx.cli.batch.reading import Input
from specx.cli.generation import Request, check_biases, check_tokens, load_session
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
    from specx.engine.api.asks import Defaults
    from specx.engine.batch.answered import Answered
    from specx.engine.batch.cluster import ClusterRun
    from specx.engine.batch.run import Run

__all__ = ["SOME_FAILED", "TOO_MANY_FAILED", "Job"]

SOME_FAILED = 3
"""Exit code: every request has its record, and some are errors."""

TOO_MANY_FAILED = 4
"""Exit code: more failed than --max-errors allows, and the rest was not begun."""


def _ignore(_text: str) -> None:
    pass


class Running(Protocol):
    """Items that are being answered."""

    @property
    def in_progress(self) -> int:
        """How many are begun and would be finished after `stop`."""

    def stop(self) -> None:
        """Begin no more."""

    def drop(self) -> None:
        """Give up what is in progress as well."""

    def answers(self) -> Iterator[Answered]:
        """What comes of each."""


Written = Callable[[int], None]
Begin = Callable[[Iterable[Item], Written], Running]
"""Begins to answer items, and tells how many tokens were written."""


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
        ray: the address of a cluster whose nodes answer; None for this machine.
        server: "no" for never in a running server.
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
    ray: str | None = None
    server: str = "no"
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
            begin = self._on_cluster(looked) if self.ray else self._in_server(stack, looked)
            begin = begin or self._here(stack, looked)
            output = stack.enter_context(closing(self._output()))
            before = 0 if looked is None else looked.answered
            total = None if looked is None else looked.items
            reporter = Reporter(total, (before, failed), self._mode())
            stack.callback(reporter.close)
            return self._answer(begin, output, reporter)

    def _look(self) -> Survey:
        """What is in the input, and whether it is still what the output answers."""
        return survey(self.reader, self._skipper(), self.request.options.n_predict)

    def _skipper(self) -> Skipper | None:
        if self.found is None:
            return None
        ordered, name = not self.options.unordered, self.records.name
        return Skipper(self.found.digests, self.form.digest, ordered=ordered, output=name)

    def _output(self) -> Output:
        path = self.options.output
        if path is None:
            return Output(self.form, self.records, begin=True)
        return open_output(self.records, path, self.form, self.made, self.found)

    def _enough(self, looked: Survey | None) -> Asked:
        """What is asked of the model, with room for the largest item unless somebody said how much."""
        asked = self.asked
        if self.request.options.n_predict == 0:
            asked = replace(asked, measure=False)
        if looked is None:
            return asked
        asked = replace(asked, answers=looked.items - looked.answered)
        if asked.n_ctx is not None:
            return asked
        n_ctx = context_for(looked.largest, asked.model, self.request.options.n_predict)
        return replace(asked, n_ctx=min(n_ctx, self.trained or n_ctx))

    def _here(self, stack: ExitStack, looked: Survey | None) -> Callable[[Iterable[Item], Written], Run]:
        """Answering on this machine: the model is loaded."""
        from specx.engine.batch.run import Run, open_with_room

        load = partial(load_session, quiet=self.options.quiet or self.options.json)
        session = stack.enter_context(open_with_room(load, self._enough(looked), self.asked.n_ctx))
        check_tokens(session, self.request.sampling)

        def begin(items: Iterable[Item], written: Written) -> Run:
            feed = Feed(items, slow=not self.source.regular)
            defaults = self._defaults(session.model_name)
            return Run(session, feed, defaults, self.made.seed, ordered=self._ordered, written=written)

        return begin

    def _in_server(self, stack: ExitStack, looked: Survey | None) -> Begin | None:
        """Answering in a running server of the same model and settings; None if there is none that can."""
        if self.server == "no":
            return None
        from specx.cli.batch.served import ServedRun, can_serve
        from specx.cli.resident.remote import find

        needed = None if looked is None else self._enough(looked).n_ctx
        remote = find(self.asked, notice if self.asked.verbose else _ignore)
        if remote is None or not can_serve(remote, self.request, needed):
            return None
        check_tokens(remote, self.request.sampling)

        def here(items: Iterable[Item], written: Written, lost: SpecxError) -> Run:
            if not self.options.quiet and not self.options.json:
                notice(f"{lost.message}: the model is loaded here")
            return self._here(stack, looked)(items, written)

        def begin(items: Iterable[Item], written: Written) -> ServedRun:
            feed = Feed(items, slow=not self.source.regular)
            defaults, at_once = self._defaults(remote.model_name), self.asked.texts
            return ServedRun(
                remote,
                feed,
                defaults,
                self.made.seed,
                at_once=at_once,
                ordered=self._ordered,
                written=written,
                here=here,
            )

        return begin

    def _on_cluster(self, looked: Survey | None) -> Begin:
        """Answering on the nodes of a cluster: each of them loads the model."""
        from specx.engine.batch.cluster import ClusterRun

        if self.request.sampling.logit_bias:
            from specx.backends.gguf.checks import read_runnable
            from specx.backends.llama.vocab import load_vocabulary

            with load_vocabulary(self.asked.model) as vocab:
                name = read_runnable(self.asked.model).name
                check_biases(vocab.size, name, self.request.sampling)

        def begin(items: Iterable[Item], written: Written) -> ClusterRun:
            return ClusterRun(
                self.ray or "",
                self._enough(looked),
                self.asked.n_ctx,
                items,
                self._defaults(),
                self.made.seed,
                ordered=self._ordered,
                written=written,
                notice=notice,
            )

        return begin

    @property
    def _ordered(self) -> bool:
        return not self.options.unordered

    def _defaults(self, model: str = "") -> Defaults:
        """What holds for items that do not say otherwise."""
        from specx.engine.api.asks import Defaults

        options = self.request.options
        return Defaults(
            sampling=self.request.sampling,
            n_predict=None if options.n_predict < 0 else options.n_predict,
            stop=tuple(options.stop or ()),
            grammar=self.request.grammar,
            ignore_eos=options.ignore_eos,
            model=model,
        )

    def _answer(self, begin: Begin, output: Output, reporter: Reporter) -> int:
        """Answer all items and write what comes of them; returns the exit code."""
        skipper = self._skipper()
        run = begin(self._items(skipper), reporter.written)
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
        output.check()
        if self.signalled and remaining != 0:
            return SIGNALLED + self.signalled
        if too_many and remaining != 0:
            return TOO_MANY_FAILED
        if skipper is not None and not self.source.regular:
            skipper.check_end()
        if remaining:
            raise FileError(
                f"{self.source.name} was changed while it was read: {remaining:,} requests are missing",
                "go on with --resume when it is complete",
            )
        return SOME_FAILED if output.failed else 0

    def _items(self, skipper: Skipper | None) -> Iterable[Item]:
        # What can be read twice was looked through, so that every custom_id is known to be there once.
        again = replace(self.how, unique=True)
        reader = self.source.reader(again) if self.source.regular else self.reader
        return reader if skipper is None else (item for item in reader if not skipper.skip(item))

    def _stop(self, run: Running, number: int) -> None:
        """A signal has come: the first one lets finish what was begun, a second one drops it."""
        if self.signalled:
            run.drop()
            return
        self.signalled = number
        run.stop()
        name = signal.Signals(number).name
        text = f"{name}: stopping\n"
        if run.in_progress:
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
