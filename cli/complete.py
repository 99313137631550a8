"""`specx complete`: one prompt in, one text out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specx.backends.errors import UsageError
from specx.cli import CUT, INTERRUPTED
from specx.cli.generation import encoded, generate, is_cut, opened, requested, statistics
from specx.cli.options.read import (
    DraftOptions,
    GenerationOptions,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    prompt_text,
    with_options,
)
from specx.cli.options.values import one_at_most
from specx.cli.resident.options import ServerOptions
from specx.cli.terminal.console import end_line, notice, write
from specx.cli.terminal.files import (
    WAIT_S,
    check_folder,
    read_stdin,
    read_text,
    stdin_has_come,
    stdin_is_piped,
    write_atomically,
)
from specx.engine.text.prompt import Prompt

if TYPE_CHECKING:
    from specx.cli.resident.remote import Remote
    from specx.engine.session import Session
    from specx.engine.text.answer import Chunk, Result

__all__ = ["OutputOptions", "complete", "read_prompt", "register"]

PANEL = "Output"
LONG_WAIT_S = 5.0
"""Seconds of silence after which it is told that the prompt is waited for: what writes it may take long."""

ADDED = 16
"""Tokens that a vocabulary may put around a prompt, and more."""

STDOUT = (Path("-"), Path("/dev/stdout"), Path("/dev/fd/1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--raw",
            help="Put the prompt into the model's chat template, as its user message.",
            rich_help_panel="Prompt",
        ),
    ] = False
    display_prompt: Annotated[
        bool,
        typer.Option(
            "--display-prompt/--no-display-prompt",
            help="Write the prompt before the text.",
            rich_help_panel=PANEL,
        ),
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object at the end.", rich_help_panel=PANEL)
    ] = False
    stream_json: Annotated[
        bool,
        typer.Option(
            "--stream-json",
            help="Write one JSON object a line: each step, then the whole with done: true.",
            rich_help_panel=PANEL,
        ),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write to this file instead, when done; - is standard output.",
            metavar="FILE",
            rich_help_panel=PANEL,
        ),
    ] = None
    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet", help="Nothing on stderr unless something is wrong.", rich_help_panel=PANEL
        ),
    ] = False


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(complete)


@with_options
def complete(
    model: ModelOptions,
    held: ServerOptions,
    draft: DraftOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    generation: GenerationOptions,
    output: OutputOptions,
) -> None:
    """Continue a prompt from -p, -f or standard input.

    The prompt is continued as it stands. With --chat, or a system message (-sys), it becomes a user message
    in the model's chat template. Piped input comes first, then -f, then -p, each on lines of its own.
    """
    output = _checked(output)
    given = Prompt(read_prompt(prompt, quiet=output.quiet), output.chat, _system(prompt))
    request = requested(sampling, generation, prompt)
    longest, quiet = _longest(given, generation.n_predict), output.quiet
    with opened(
        model, draft, request, server=held.server, quiet=quiet, answers=1, longest=longest
    ) as session:
        whole = encoded(session, given, quiet=output.quiet)
        writer = _Writer(output, session, before=whole.text if output.display_prompt else "")
        result = generate(
            session,
            whole.tokens,
            request,
            show=writer.chunk,
            stops=whole.stops,
            keep=whole.keep,
            quiet=output.quiet,
        )
        writer.finish(result)
    if result.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)
    if is_cut(result, request):
        notice("the text was cut off before it matched its grammar (-n allows more tokens)")
        raise typer.Exit(CUT)


def _longest(prompt: Prompt, n_predict: int) -> int | None:
    """The most tokens of a prompt and its answer: each is at least a byte. Unknown in a template."""
    if n_predict < 0 or prompt.chat or prompt.system is not None:
        return None
    return len(prompt.text.encode()) + ADDED + n_predict


def _checked(output: OutputOptions) -> OutputOptions:
    one_at_most({"--json": output.json, "--stream-json": output.stream_json})
    if output.output in STDOUT:  # as a path it would name the file that stdout goes to, and empty it
        return replace(output, output=None)
    if output.output is not None:
        check_folder(output.output)
        if output.output.is_dir():
            raise UsageError(f"{output.output} is a folder", "give the name of a file")
    return output


def _piped(*, waiting: bool) -> str:
    """All of standard input; if nothing comes, it is told that it is waited for, soon beside a prompt."""
    if not stdin_has_come(WAIT_S if waiting else LONG_WAIT_S):
        what = "the end of standard input, which comes before the prompt (</dev/null for none)"
        notice(f"waiting for {what if waiting else 'standard input, which is the prompt'}")
    return read_stdin()


def read_prompt(options: PromptOptions, *, quiet: bool = False) -> str:
    """The prompt: piped input, then the file, then the argument.

    Args:
        options: what was given.
        quiet: do not tell that input was piped besides.

    Raises:
        UsageError: there is none, or it is not UTF-8.
    """
    from_file = read_text(options.file) if options.file is not None else ""
    given_too = bool(options.prompt or from_file)
    piped = _piped(waiting=given_too) if str(options.file) != "-" and stdin_is_piped() else ""
    if piped and given_too and not quiet:
        notice(
            f"{len(piped.encode()):,} bytes of standard input come before the prompt that was given; "
            "</dev/null keeps them out, as in a loop that reads lines"
        )
    given = prompt_text(options.prompt or "", options)
    # A file's last line end is not part of a prompt: the model would take it for the end of a paragraph.
    parts = [piped.removesuffix("\n"), from_file.removesuffix("\n"), given]
    text = "\n".join(part for part in parts if part)
    if not text:
        raise UsageError("the prompt is empty", 'give one: -p "Once upon a time", -f FILE, or a pipe')
    return text


def _system(prompt: PromptOptions) -> str | None:
    return None if prompt.system_prompt is None else prompt_text(prompt.system_prompt, prompt)


class _Writer:
    """Text, JSON or JSON lines, to stdout as it comes or to a file when all is done."""

    def __init__(self, options: OutputOptions, session: Session | Remote, *, before: str) -> None:
        self._options = options
        self._session = session
        self._before = before  # the progress bar would wipe away what is written before it goes
        self._kept: list[str] = []
        self._emit: Callable[[str], Any] = write if options.output is None else self._kept.append

    def _text(self, text: str) -> None:
        text, self._before = self._before + text, ""
        if text and not (self._options.json or self._options.stream_json):
            self._emit(text)

    def chunk(self, chunk: Chunk) -> None:
        """One step."""
        self._text(chunk.text)
        if self._options.stream_json:
            self._line(
                {
                    "text": chunk.text,
                    "tokens": chunk.tokens,
                    "drafted": chunk.drafted,
                    "accepted": chunk.accepted,
                    "seconds": round(chunk.seconds, 6),
                    "done": False,
                }
            )

    def finish(self, result: Result) -> None:
        """The whole."""
        options = self._options
        self._text("")
        if options.json or options.stream_json:
            self._line(self._object(result))
        end_line()
        if options.output is not None:
            write_atomically(options.output, "".join(self._kept))
        if not (options.quiet or options.json or options.stream_json):
            notice(f"seed: {result.seed}, {statistics(result, self._session.drafter_label)}")
        if result.finish_reason == "context":
            notice(f"stopped: the context of {self._session.n_ctx} tokens is full (-c, --context-shift)")

    def _object(self, result: Result) -> dict[str, Any]:
        whole = {
            "text": result.text,
            "tokens": result.tokens,
            "finish_reason": result.finish_reason,
            "seed": result.seed,
            "drafter": self._session.drafter_name,
            "model": self._session.model_name,
            "setup": self._session.setup.to_json() if self._session.setup else {},
            "timings": result.timings.as_dict(),
        }
        return {**whole, "done": True} if self._options.stream_json else whole

    def _line(self, value: dict[str, Any]) -> None:
        self._emit(json.dumps(value, ensure_ascii=False) + "\n")
