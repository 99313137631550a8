"""What the commands that generate have in common: what was asked for, a loaded model, and one generation with
progress, Ctrl-C and statistics."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specx import cli
from specx.backends.errors import SpecxError, UsageError
from specx.cli.options.adapting import AdaptOptions
from specx.cli.options.read import (
    DraftOptions,
    GenerationOptions,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    check_generation,
    one_of,
    prompt_text,
    read_asked,
    sampling_settings,
)
from specx.cli.resident.options import SERVER
from specx.cli.terminal.console import Progress, StatusLine, notice
from specx.cli.terminal.files import read_text
from specx.cli.terminal.interrupts import on_interrupt
from specx.engine.settings import Asked, SamplingSettings

if TYPE_CHECKING:
    from specx.cli.resident.remote import Remote
    from specx.engine.session import Session
    from specx.engine.text.answer import Chunk, Result
    from specx.engine.text.prompt import Encoded, Prompt

__all__ = [
    "Counted",
    "Request",
    "check_biases",
    "check_tokens",
    "encoded",
    "generate",
    "is_cut",
    "load_session",
    "open_session",
    "opened",
    "requested",
    "statistics",
    "summary",
]


OBJECTS_TO_COLLECT = 50_000
"""New containers after which Python looks for garbage once a model is loaded, instead of 700."""

_left: list[Session] = []
"""Sessions of models that nobody frees any more, not even when they are out of sight."""


class _ReadingStoppedError(Exception):
    """Ctrl-C came while the prompt was read."""


@dataclass(frozen=True, slots=True)
class Request:
    """How every answer is made: checked options, and the GBNF grammar that they come to."""

    sampling: SamplingSettings
    options: GenerationOptions
    grammar: str | None = None


def requested(
    sampling: SamplingOptions, generation: GenerationOptions, prompt: PromptOptions | None = None
) -> Request:
    """What the options ask for; escapes in stop strings are resolved where they are in the `prompt`.

    Raises:
        UsageError: a value is not allowed, or a file cannot be read.
        GrammarError: a grammar cannot be used, or a JSON schema cannot be turned into one.
    """
    if prompt is not None and generation.stop:
        generation = replace(generation, stop=[prompt_text(text, prompt) for text in generation.stop])
    check_generation(generation)
    return Request(sampling_settings(sampling), generation, _grammar_text(generation))


@contextmanager
def open_session(
    model: ModelOptions,
    draft: DraftOptions,
    request: Request | None = None,
    *,
    quiet: bool = False,
    answers: int | None = None,
) -> Iterator[Session]:
    """A model loaded behind a progress bar, without notices if `quiet`; what it learned is kept at the end.

    It writes as many `answers`, if that is known.

    Raises:
        SpecxError: the model cannot be found or loaded, or does not have the tokens of the request.
    """
    asked = _asked(model, draft, request, answers)
    with _held(load_session(asked, quiet=quiet)) as session:
        if request is not None:
            check_tokens(session, request.sampling)
        yield session


@contextmanager
def opened(
    model: ModelOptions,
    draft: DraftOptions,
    request: Request,
    learning: AdaptOptions | None = None,
    *,
    server: str,
    quiet: bool = False,
    answers: int | None = None,
    longest: int | None = None,
    idle: bool = False,
) -> Iterator[Session | Remote]:
    """The model in a running server that does what is asked, or else one that is loaded here.

    Args:
        model, draft, request, quiet, answers: as of `open_session`.
        learning: whether a draft head learns, which it does here.
        server: "auto", or "no" for never in a server.
        longest: the most tokens that a text can have, if that is known.
        idle: somebody types before the first answer, which leaves time to measure.
    """
    asked = replace(_asked(model, draft, request, answers), longest=longest, idle=idle)
    if learning is not None and learning.adapt:
        asked, server = learning.of(asked), "no"
    with _in_server(asked, server, quiet=quiet) or _held(load_session(asked, quiet=quiet)) as session:
        check_tokens(session, request.sampling)
        yield session


@contextmanager
def _held(session: Session) -> Iterator[Session]:
    """Closed in the end. The memory of the model is left to the kernel where the process ends then."""
    try:
        yield session
    finally:
        session.close(free=not cli.process_ends)
        if cli.process_ends:
            _left.append(session)


def _asked(model: ModelOptions, draft: DraftOptions, request: Request | None, answers: int | None) -> Asked:
    asked = replace(read_asked(model, draft), answers=answers)
    if request is not None and request.options.n_predict == 0:
        asked = replace(asked, measure=False)
    return asked


def _in_server(asked: Asked, server: str, *, quiet: bool) -> Remote | None:
    if one_of("--server", server, SERVER) == "no":
        return None
    from specx.cli.resident.remote import find

    explain = notice if asked.verbose and not quiet else _ignore

    def load(problem: SpecxError) -> Session:
        explain(f"{problem.message}: the model is loaded here")
        return load_session(asked, quiet=quiet)

    return find(asked, explain, load)


def load_session(asked: Asked, *, quiet: bool = False) -> Session:
    """A model loaded behind a progress bar, without notices if `quiet`.

    Raises:
        SpecxError: it cannot be loaded.
    """
    Session = _session_class()  # noqa: N806
    with Progress(f"loading {asked.model.name}", quiet=quiet) as progress:
        session = Session.open(asked, progress=progress.update, notice=_ignore if quiet else notice)
    session.warn = notice  # what is probably wrong is told however quiet
    if cli.process_ends and not gc.get_freeze_count():
        gc.freeze()  # nothing of what a start made is garbage: it is never looked through
        gc.set_threshold(OBJECTS_TO_COLLECT)
    return session


def _session_class() -> type[Session]:
    """`Session`, imported so that OpenBLAS starts no threads with NumPy: nothing is multiplied by them."""
    name = "OPENBLAS_NUM_THREADS"
    given = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        from specx.engine.session import Session
    finally:
        if given is None:
            del os.environ[name]
    return Session


def encoded(session: Session | Remote, prompt: Prompt, *, quiet: bool = False) -> Encoded:
    """A prompt as the model reads it; what is odd about its template is told unless `quiet`.

    Raises:
        TemplateError: the template cannot be used.
    """
    told = _ignore if quiet else notice
    if hasattr(session, "encode"):  # in a server
        return session.encode(prompt, told)
    from specx.engine.text.prompt import encode

    return encode(prompt, session, told)


def _ignore(_text: str) -> None:
    pass


def _grammar_text(options: GenerationOptions) -> str | None:
    """The grammar that is asked for; what is wrong with it is mostly found before a model is loaded."""
    grammar, schema = options.grammar, options.json_schema
    files = (options.grammar_file, options.json_schema_file)
    if sum(given is not None for given in (grammar, schema, *files)) > 1:
        raise UsageError("more than one grammar or JSON schema is given", "give one of them")
    if options.grammar_file is not None:
        grammar = read_text(options.grammar_file)
    if options.json_schema_file is not None:
        schema = read_text(options.json_schema_file)
    if schema is not None:
        from specx.engine.text.json_schema import grammar_of_schema

        grammar = grammar_of_schema(schema)
    if grammar is not None:
        from specx.engine.text.grammar_check import check_grammar

        check_grammar(grammar)
    return grammar


def check_tokens(session: Session | Remote, sampling: SamplingSettings) -> None:
    """Raises UsageError if a logit bias names a token that the vocabulary does not have."""
    check_biases(session.vocab.size, session.model_name, sampling)


def check_biases(size: int, name: str, sampling: SamplingSettings) -> None:
    """`check_tokens` for a model of a `name` with so many tokens."""
    for token in sampling.logit_bias:
        if token >= size:
            raise UsageError(f"-l/--logit-bias names token {token}", f"{name} has tokens 0 to {size - 1}")


def generate(
    session: Session | Remote,
    prompt: Sequence[int],
    request: Request,
    *,
    show: Callable[[Chunk], None],
    stops: Sequence[str] = (),
    keep: int = 0,
    quiet: bool = False,
) -> Result:
    """Run one generation, calling `show` with each piece. Ctrl-C cancels it, twice raises KeyboardInterrupt.

    Args:
        session: the model.
        prompt: tokens of the whole context.
        request: how it is made.
        show: takes each piece as it comes.
        stops: stop strings besides those of the request.
        keep: tokens of the prompt that stay when the context shifts, unless the person asked for a number.
        quiet: show no progress.

    Raises:
        SpecxError: the grammar or the prompt cannot be used, or decoding fails.
    """
    options, grammar = request.options, request.grammar
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        generation.cancel()

    def reading(done: int, total: int) -> None:
        progress.count(done, total)
        if stopped:
            raise _ReadingStoppedError

    writer: Any = session  # what one makes of a grammar the same one takes
    with Progress("reading the prompt", remaining=True, quiet=quiet) as progress:
        generation = writer.generate(
            prompt,
            request.sampling,
            n_predict=options.n_predict,
            stop=(*(options.stop or ()), *stops),
            ignore_eos=options.ignore_eos,
            constraint=None if grammar is None else writer.grammar(grammar),
            keep=keep if options.keep is None else options.keep,
            progress=reading,
        )
        with on_interrupt(stop), suppress(_ReadingStoppedError):
            for chunk in generation:
                progress.close()
                if chunk.text or not chunk.last:
                    show(chunk)
    result: Result = generation.result
    return result


def statistics(result: Result, drafter: str) -> str:
    """One line: how fast it was, and how much of the drafts was accepted."""
    t = result.timings
    limit = " (the most that -n allows)" if result.finish_reason == "length" else ""
    return summary(
        t.predicted_n, t.predicted_ms / 1e3, t.steps, t.draft_n, t.draft_n_accepted, drafter, limit
    )


def is_cut(result: Result, request: Request) -> bool:
    """Whether a text had to match a grammar and ended before it did."""
    return request.grammar is not None and result.finish_reason in ("length", "context")


def summary(
    tokens: int, seconds: float, steps: int, drafted: int, accepted: int, drafter: str, limit: str = ""
) -> str:
    """The same from its numbers."""
    ended = " (the last step found the end of the text)" if 0 < tokens < steps else ""
    drafts = f"{accepted / drafted:.0%} of drafts accepted" if drafted else "nothing drafted"
    return (
        f"{tokens} tokens{limit}, {tokens / max(seconds, 1e-6):.1f} tokens/s, "
        f"{tokens / max(steps, 1):.2f} tokens/step{ended}, {drafts} ({drafter})"
    )


class Counted:
    """Running totals of one answer, on the status line."""

    def __init__(self, line: StatusLine, drafter: str) -> None:
        self._line, self._drafter = line, drafter
        self._tokens = self._steps = self._drafted = self._accepted = 0
        self._seconds = 0.0

    def add(self, chunk: Chunk) -> None:
        """One more step."""
        self._tokens += len(chunk.tokens)
        self._steps += 1
        self._drafted += chunk.drafted
        self._accepted += chunk.accepted
        self._seconds += chunk.seconds
        counts = (self._tokens, self._seconds, self._steps, self._drafted, self._accepted)
        self._line.update(summary(*counts, self._drafter))
