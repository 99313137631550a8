"""A loaded model and one generation, as a command shows them: progress, Ctrl-C, statistics."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from specx.backends.errors import UsageError
from specx.cli.console import Progress, notice
from specx.cli.files import read_text
from specx.cli.options import GenerationOptions
from specx.engine.settings import LoadSettings, SamplingSettings

if TYPE_CHECKING:
    from specx.engine.session import Chunk, Result, Session

__all__ = ["check_tokens", "generate", "grammar_text", "on_interrupt", "open_session", "statistics"]


class _ReadingStoppedError(Exception):
    """Ctrl-C came while the prompt was read."""


def open_session(settings: LoadSettings, *, quiet: bool = False) -> Session:
    """Load a model behind a progress bar, without notices if `quiet`. Ctrl-C ends specx with exit code 130.

    Raises:
        SpecxError: the model cannot be loaded.
    """
    from specx.engine.session import Session

    with Progress(f"loading {settings.model.name}") as progress, on_interrupt(_leave):
        return Session.open(settings, progress=progress.update, notice=_ignore if quiet else notice)


def _ignore(_text: str) -> None:
    pass


def _leave() -> None:
    # An exception would be lost: libllama calls back into Python, and ctypes swallows what is raised there.
    if sys.stderr.isatty():
        os.write(2, b"\r\x1b[2K\x1b[?25h")
    os._exit(130)


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C inside runs `action`, a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def grammar_text(options: GenerationOptions) -> str | None:
    """The GBNF grammar that the options ask for, or None.

    Raises:
        GrammarError: a JSON schema cannot be turned into one.
        UsageError: there is more than one, or a file cannot be read.
    """
    grammar, schema = options.grammar, options.json_schema
    files = (options.grammar_file, options.json_schema_file)
    if sum(given is not None for given in (grammar, schema, *files)) > 1:
        raise UsageError("more than one grammar or JSON schema is given", "give one of them")
    if options.grammar_file is not None:
        return read_text(options.grammar_file)
    if options.json_schema_file is not None:
        schema = read_text(options.json_schema_file)
    if schema is None:
        return grammar
    from specx.engine.json_schema import grammar_of_schema

    return grammar_of_schema(schema)


def check_tokens(session: Session, sampling: SamplingSettings) -> None:
    """Raises UsageError if a logit bias names a token that the vocabulary does not have."""
    size = session.vocab.size
    for token in sampling.logit_bias:
        if token >= size:
            raise UsageError(
                f"-l/--logit-bias names token {token}", f"{session.model_name} has tokens 0 to {size - 1}"
            )


def generate(
    session: Session,
    prompt: Sequence[int],
    sampling: SamplingSettings,
    options: GenerationOptions,
    *,
    show: Callable[[Chunk], None],
    stops: Sequence[str] = (),
    grammar: str | None = None,
) -> Result:
    """Run one generation, calling `show` with each piece. Ctrl-C cancels it, twice raises KeyboardInterrupt.

    Args:
        session: the model.
        prompt: tokens of the whole context.
        sampling, options: what the person asked for.
        show: takes each piece as it comes.
        stops: stop strings besides those of `options`.
        grammar: GBNF grammar that the text must follow.

    Raises:
        SpecxError: the grammar or the prompt cannot be used, or decoding fails.
    """
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        generation.cancel()

    def reading(done: int, total: int) -> None:
        progress.count(done, total)
        if stopped:
            raise _ReadingStoppedError

    with Progress("reading the prompt") as progress:
        generation = session.generate(
            prompt,
            sampling,
            n_predict=max(options.n_predict, -1),
            stop=(*(options.stop or ()), *stops),
            ignore_eos=options.ignore_eos,
            constraint=None if grammar is None else session.grammar(grammar),
            progress=reading,
        )
        with on_interrupt(stop), suppress(_ReadingStoppedError):
            for chunk in generation:
                progress.close()
                show(chunk)
    return generation.result


def statistics(result: Result, drafter: str) -> str:
    """One line: how fast it was, and how much of the drafts was accepted."""
    timings = result.timings
    parts = [
        f"{timings.predicted_n} tokens",
        f"{timings.predicted_per_second:.1f} tokens/s",
        f"{timings.predicted_n / max(timings.steps, 1):.2f} tokens/step",
    ]
    if timings.draft_n:
        accepted = f"{timings.draft_n_accepted / timings.draft_n:.0%} of drafts accepted"
        parts.append(f"{accepted} ({drafter})")
    else:
        parts.append(f"nothing drafted ({drafter})")
    return ", ".join(parts)
