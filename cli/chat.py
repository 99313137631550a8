"""`specx chat`: a conversation, in a terminal or through pipes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.errors import ContextFullError, SpecxError, UsageError, unexpected
from specx.backends.places import expanded
from specx.cli import CUT, SIGNALLED
from specx.cli.conversation import Conversation
from specx.cli.generation import Counted, Request, generate, is_cut, opened, requested, statistics
from specx.cli.idle import idle
from specx.cli.options.adapting import AdaptOptions
from specx.cli.options.read import (
    DraftOptions,
    GenerationOptions,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    prompt_text,
    with_options,
)
from specx.cli.resident.options import ServerOptions
from specx.cli.terminal.console import StatusLine, end_line, error, notice, settle, write
from specx.cli.terminal.files import read_text
from specx.cli.terminal.flow import Flow
from specx.cli.terminal.interrupts import on_end, on_interrupt, stopping
from specx.cli.terminal.lines import Editor, PlainLines, Reader, history_file
from specx.cli.terminal.tables import field_lines
from specx.cli.terminal.unheard import typing_waits

if TYPE_CHECKING:
    from specx.cli.resident.remote import Remote
    from specx.cli.terminal.markdown import MarkdownStream
    from specx.engine.session import Session
    from specx.engine.text.answer import Chunk, Result
    from specx.engine.text.template import ChatTemplate

__all__ = ["Chat", "ChatOptions", "Conversation", "chat", "register"]

SAME = {"/clear": "/reset", "/new": "/reset", "/regen": "/regenerate", "/retry": "/regenerate", "/?": "/help"}
"""What other programs call commands."""
INSTEAD = {
    "/set": "/system TEXT sets the system message; the rest are options of `specx chat`, such as --temp 0",
    "/show": "`specx show MODEL` says what the model is, /system the system message",
    "/model": "leave with /bye, and begin with another one: specx chat MODEL",
    **dict.fromkeys(
        ("/read", "/glob", "/image"), "`specx chat -f FILE` takes text from a file; specx reads no images"
    ),
}
"""What there is in place of commands of other programs."""
FULL_HINT = "/reset begins anew; or /save FILE, start again with -c or --context-shift, and /load FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How the conversation is shown."""

    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown/--no-markdown", help="Render answers as Markdown.", rich_help_panel="Output"
        ),
    ] = False
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats",
            help="Speed and acceptance, during and after each answer.",
            rich_help_panel="Output",
            show_default="on in a terminal, unless -q",
        ),
    ] = None
    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet", help="Nothing on stderr unless something is wrong.", rich_help_panel="Output"
        ),
    ] = False


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(chat)


@with_options
def chat(
    model: ModelOptions,
    held: ServerOptions,
    draft: DraftOptions,
    learning: AdaptOptions,
    prompt: PromptOptions,
    sampling: SamplingOptions,
    generation: GenerationOptions,
    shown: ChatOptions,
) -> None:
    """Talk to a model.

    In a terminal /help shows the commands. Without one, each line of standard input is a message and the
    answers go to standard output. A prompt from -p or -f is the first message.
    """
    request = requested(sampling, generation, prompt)
    first = _first_message(prompt)
    system = prompt_text(prompt.system_prompt or "", prompt)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    typed = interactive and not first
    with opened(
        model, draft, request, learning, server=held.server, quiet=shown.quiet, idle=typed
    ) as session:
        if not shown.quiet:
            notice(session.summary())
            if interactive:
                notice("/help lists the commands, Ctrl-D leaves")
        talk = Chat(session, request, system=system)
        talk.stats = interactive and not shown.quiet if shown.stats is None else shown.stats
        talk.markdown = shown.markdown and sys.stdout.isatty()
        talk.context_shift = model.context_shift
        talk.scripted, talk.quiet, talk.typed = not sys.stdin.isatty(), shown.quiet, typed
        history = history_file() if interactive and not model.no_cache else None
        reader = Editor(history, list(talk.commands)) if interactive else PlainLines()
        with on_end(partial(talk.end, reader)):
            try:
                talk.run(reader, first)
            except (KeyboardInterrupt, OSError):  # a terminal that was closed takes nothing any more
                if not talk.ended_by:
                    raise
    if talk.ended_by:
        for stream in (sys.stdout, sys.stderr):
            settle(stream)
        raise typer.Exit(SIGNALLED + talk.ended_by)
    if talk.scripted and (talk.failed or talk.cut):
        raise typer.Exit(1 if talk.failed else CUT)


def _first_message(prompt: PromptOptions) -> str:
    parts = [
        read_text(prompt.file).removesuffix("\n") if prompt.file is not None else "",
        prompt_text(prompt.prompt or "", prompt),
    ]
    return "\n".join(part for part in parts if part)


class Chat:
    """The conversation with one model: messages, commands and answers.

    Args:
        session: the model.
        request: how every answer is made.
        system: the system message, or an empty string.

    Raises:
        TemplateError: the model's chat template cannot be used.
    """

    def __init__(self, session: Session | Remote, request: Request, *, system: str = "") -> None:
        from specx.engine.text.template import template_of

        self.session = session
        self.request = request
        self.conversation = Conversation(system)
        self.template: ChatTemplate = template_of(session)
        if self.template.notice:
            notice(self.template.notice)
        self.stats = self.markdown = self.context_shift = False
        self.scripted = self.failed = self.cut = self.quiet = self.typed = False
        self.last: Result | None = None
        self._replaceable: set[Path] = set()  # files that /save may write, as they exist
        self._ended = self._waiting = False
        self.ended_by = 0  # the number of a signal
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/reset": (self._reset, "begin a new conversation with the same system message"),
            "/system": (self._system, "TEXT: set the system message; without TEXT show it"),
            "/regenerate": (self._regenerate, "answer the last message once more"),
            "/save": (self._save, "FILE: keep the conversation as JSON"),
            "/load": (self._load, "FILE: go on with a kept conversation"),
            "/stats": (self._stats, "[on|off]: statistics of each answer"),
            "/drafter": (self._drafter, "[NAME]: show or change where drafts come from"),
            "/bye": (self._bye, "leave (also /exit, /quit, exit, Ctrl-D)"),
        }

    def run(self, reader: Reader, first: str = "") -> None:
        """Answer `first`, then everything that `reader` yields, until it ends.

        Raises:
            KeyboardInterrupt: Ctrl-C twice at an empty line, or once if nobody is typing.
        """
        interrupted = False
        if first:
            self._take(first)
        while not self._ended:
            try:
                text = self._read(reader)
            except KeyboardInterrupt:
                if self.ended_by or interrupted or isinstance(reader, PlainLines):
                    raise
                interrupted = True
                notice("Ctrl-C again leaves, and so does /bye")
                continue
            except SpecxError as problem:  # this message cannot be used; the next one may
                self._refuse(problem)
                continue
            interrupted = False
            if text is None:
                return
            self._take(text)

    def _read(self, reader: Reader) -> str | None:
        self._waiting = True
        try:
            with idle(self.session) if self.typed else nullcontext():
                return reader.read()
        finally:
            self._waiting = False

    def end(self, reader: Reader, number: int) -> None:
        """A signal has come: an answer ends after the present step, and then the conversation."""
        self.ended_by, self._ended = number, True
        if self._waiting:
            reader.interrupt()
        else:
            signal.raise_signal(signal.SIGINT)

    def _take(self, text: str) -> None:
        if self.scripted:
            self.take(text)
        else:  # a Ctrl-C that comes just too late for an answer must not end the conversation
            with on_interrupt(lambda: None), typing_waits():
                self.take(text)

    def take(self, text: str) -> None:
        """One thing a person typed: a command or a message. Errors are shown, and the chat goes on."""
        try:
            if text.strip() in ("exit", "/exit", "/quit"):
                self._bye("")
            elif text.startswith("/") and "\n" not in text:
                self._command(text)
            else:
                self.conversation.add("user", text)
                self._answer(self.request)
        except SpecxError as problem:
            self._refuse(problem)
        except OSError:  # nobody takes the text any more
            raise
        except Exception as problem:  # noqa: BLE001 -- a bug must not cost a person the conversation
            self._refuse(unexpected(problem, "the conversation is as it was before; /save FILE keeps it"))

    def _refuse(self, problem: SpecxError) -> None:
        self.failed = True
        error(problem)

    def _command(self, text: str) -> None:
        typed, _, argument = text.partition(" ")
        name = SAME.get(typed, typed)
        if name not in self.commands:
            from difflib import get_close_matches

            close = get_close_matches(name, self.commands, n=1)
            likely = f"did you mean {close[0]}?" if close else "/help lists the commands"
            hint = INSTEAD.get(name, likely)
            raise UsageError(f"there is no command {name}", hint)
        self.commands[name][0](argument.strip())

    def _answer(self, request: Request) -> bool:
        """Answer the last message. If there is no answer, it is taken back and the rest stays."""
        try:
            result = self._generate(request)
        except BaseException:
            self.conversation.messages.pop()
            raise
        cancelled = result is None or result.finish_reason == "cancelled"
        if cancelled and self.scripted:
            raise KeyboardInterrupt
        if result is None or (cancelled and not result.text):
            self.conversation.messages.pop()
            notice("stopped before the answer began; the message is taken back")
            return False
        self.last = result
        self.conversation.add("assistant", result.text)
        if self.stats:
            notice(statistics(result, self.session.drafter_label))
        if is_cut(result, request):
            self.cut = True
            notice("the answer was cut off before it matched its grammar (-n allows more tokens)")
        elif result.finish_reason == "length" and not (self.stats or self.quiet):
            notice(f"stopped after {result.timings.predicted_n} tokens, the most that -n allows")
        if result.finish_reason == "context":
            notice(f"the context of {self.session.n_ctx} tokens is full: {FULL_HINT}")
        return True

    def _generate(self, request: Request) -> Result | None:
        """The answer; None if Ctrl-C came before the prompt was written down."""
        known = self.template.notice
        try:
            with stopping():
                tokens, keep = self._prompt(), self._opening()
        except KeyboardInterrupt:
            return None
        if self.template.notice not in (None, known):
            notice(str(self.template.notice))
        live = self.stats and not self.markdown  # Rich moves the cursor itself
        with _View(markdown=self.markdown) as view, StatusLine(enabled=live) as line:
            count = Counted(line, self.session.drafter_label)

            def show(chunk: Chunk) -> None:
                view.add(chunk.text)
                count.add(chunk)

            return generate(
                self.session,
                tokens,
                request,
                show=show,
                stops=self.template.stops,
                keep=keep,
                quiet=self.quiet,
            )

    def _opening(self) -> int:
        """Tokens that stay in view when an answer fills the context."""
        if not self.context_shift:
            return 0
        return self.template.opening_length(self.conversation.since(0), self.session.tokenize)

    def _prompt(self) -> list[int]:
        """Tokens of the conversation. With --context-shift its oldest exchanges are left out once a quarter
        of the context is not free for the answer, until half of it is: the rest is read anew each time.
        """
        n_ctx, talk = self.session.n_ctx, self.conversation
        start, left_out = talk.start, 0
        tokens = self._tokens(start)
        if self.context_shift and len(tokens) > n_ctx - n_ctx // 4:
            while len(tokens) > n_ctx // 2 and (later := talk.next_exchange(start)) is not None:
                start, left_out = later, left_out + 1
                tokens = self._tokens(start)
        if len(tokens) >= n_ctx:
            raise ContextFullError(
                f"with this message the conversation has {len(tokens)} tokens, and the context holds "
                f"{n_ctx}; the message is taken back",
                FULL_HINT
                if start < len(talk.messages) - 1
                else "send a shorter one, or start with more room (-c)",
            )
        talk.start = start
        if left_out:
            which = "oldest exchange is" if left_out == 1 else f"{left_out} oldest exchanges are"
            notice(f"the context is nearly full: the {which} no longer shown to the model (/save keeps all)")
        return tokens

    def _tokens(self, start: int) -> list[int]:
        text = self.template.render(self.conversation.since(start))
        return self.template.tokenize(text, self.session.tokenize)

    def _help(self, _argument: str) -> None:
        for line in field_lines((name, text) for name, (_action, text) in self.commands.items()):
            notice(line)
        notice('""" ... """, a \\ at the end of a line, or Alt-Enter: several lines in one message')

    def _reset(self, _argument: str) -> None:
        self.conversation.clear()
        notice("a new conversation")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = argument
        notice(f"system message: {self.conversation.system or 'none'}")

    def _regenerate(self, _argument: str) -> None:
        messages = self.conversation.messages
        if not messages or messages[-1]["role"] != "assistant":
            raise UsageError("there is no answer to make again", "send a message first")
        before, answered = list(messages), False
        messages.pop()
        try:
            # With the seed of before, the answer would be the one of before.
            another = replace(self.request, sampling=replace(self.request.sampling, seed=None))
            answered = self._answer(another)
        finally:
            if not answered:
                self.conversation.messages = before

    def _save(self, argument: str) -> None:
        path = _path("/save", argument)
        if not self.scripted and path.is_file() and path not in self._replaceable:
            self._replaceable.add(path)
            notice(f"{path} exists: the same command once more replaces it")
            return
        self.conversation.save(path)
        self._replaceable.add(path)
        notice(f"{len(self.conversation.messages)} messages kept in {path}")

    def _load(self, argument: str) -> None:
        path = _path("/load", argument)
        mended = self.conversation.load(path)
        self._replaceable.add(path)
        notice(f"{len(self.conversation.messages)} messages from {path}")
        if mended:
            notice(f"{mended} of them held lone surrogates, which are no characters: they became U+FFFD")

    def _stats(self, argument: str) -> None:
        if argument:
            if argument not in ("on", "off"):
                raise UsageError(f"/stats is {argument!r}", "allowed are on and off")
            self.stats = argument == "on"
            notice(f"statistics are {argument}")
        elif self.last is None:
            notice("no answer yet")
        else:
            notice(f"seed: {self.last.seed}, {statistics(self.last, self.session.drafter_label)}")

    def _drafter(self, argument: str) -> None:
        if argument:
            self.session.set_drafter(argument)
        notice(self.session.summary())

    def _bye(self, _argument: str) -> None:
        self._ended = True


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs the name of a file", f"for example {command} talk.json")
    return expanded(Path(argument))


class _View:
    """The answer on stdout as it comes, as Markdown or as it is; a terminal's lines end between words."""

    def __init__(self, *, markdown: bool) -> None:
        self._flow = Flow()
        self._markdown: MarkdownStream | None = None
        self._last = ""
        if markdown:
            from specx.cli.terminal.markdown import MarkdownStream

            self._markdown = MarkdownStream()

    def __enter__(self) -> _View:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if self._markdown is not None:
            self._markdown.close()
        elif self._last != "\n" and (self._last or kind is None):
            write("\n")
        end_line()

    def add(self, text: str) -> None:
        """More of the answer."""
        if self._markdown is not None:
            self._markdown.add(text)
        elif text:
            self._flow.add(text)
            self._last = text[-1]
