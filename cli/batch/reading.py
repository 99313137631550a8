"""From what stands on the command line to an input that is open, and how it is read."""

from __future__ import annotations

import io
import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specx.backends import errors
from specx.backends.errors import UsageError
from specx.cli.batch.options import FORMATS, InputOptions
from specx.cli.options.read import ModelOptions
from specx.cli.terminal.files import stdin_is_piped
from specx.engine.batch.items import Reader, Reading
from specx.engine.batch.source import BOM, read_lines
from specx.engine.batch.template import Template

__all__ = ["Input", "open_input", "reading", "settled"]

BUFFER = 1 << 20
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def settled(model: ModelOptions, options: InputOptions) -> tuple[ModelOptions, InputOptions]:
    """Which of the arguments is the model and which the input: alone, or beside `-m`, what is no model is the
    input.

    Raises:
        UsageError: there is no input.
    """
    first = model.model
    elsewhere = model.model_flag is not None or model.hf_repo is not None
    if first is not None and options.input is None and (elsewhere or _is_input(first)):
        model, options = replace(model, model=None), replace(options, input=first)
    if options.input is None:
        if not stdin_is_piped():
            raise UsageError("there is no input", "name a file behind the model, or give a pipe")
        options = replace(options, input="-")
    return model, options


def _is_input(name: str) -> bool:
    """Whether a name stands for an input, and not for a model: standard input, or a file that is no GGUF."""
    path = Path(name)
    try:
        if name == "-" or path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson", ".txt"):
            return True
        if not path.is_file() or path.suffix.lower() == ".gguf":
            return False
        with path.open("rb") as file:
            return file.read(4) != b"GGUF"
    except (OSError, ValueError):
        return False


@dataclass(slots=True)
class Input:
    """An input that is open.

    Attributes:
        name: what messages call it.
        file: where its bytes come from.
        regular: it is a file: it can be read twice, and there is nothing to wait for.
        suffix: of its name.
        begin: where in it the reading begins.
    """

    name: str
    file: io.BufferedReader[Any]
    regular: bool
    suffix: str = ""
    begin: int = 0

    def reader(self, how: Reading) -> Reader:
        """Its items, from the beginning where that is possible."""
        if self.regular:
            self.file.seek(self.begin)
        return Reader(how, read_lines(self.file, self.name, how.longest))

    def is_json(self) -> bool:
        """Whether it begins as an object does.

        Raises:
            FileError: it cannot be read.
        """
        with errors.reading(self.name):
            return self.file.peek(64).removeprefix(BOM).lstrip()[:1] == b"{"


def open_input(name: str) -> Input:
    """Open an input; `-` is standard input.

    Raises:
        FileError: it cannot be read.
    """
    if name == "-":
        try:
            descriptor = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):  # it is no file, but something within this process
            inner: Any = sys.stdin.buffer
            return Input("standard input", io.BufferedReader(inner), regular=False)
        # A reader of its own: the one of `sys.stdin` must not be waited in when Python ends.
        file = io.BufferedReader(io.FileIO(descriptor, closefd=False), BUFFER)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        begin = os.lseek(descriptor, 0, os.SEEK_CUR) if regular else 0
        return Input("standard input", file, regular, begin=begin)
    path = Path(name).expanduser()
    with errors.reading(name):
        file = io.BufferedReader(io.FileIO(path), BUFFER)
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    return Input(name, file, regular, path.suffix.lower())


def reading(
    source: Input, options: InputOptions, *, chat: bool, keep_blank: bool, fields: dict[str, Any]
) -> Reading:
    """How an input is read.

    Args:
        source: the input.
        options: what was asked for.
        chat: whether texts go into a chat template.
        keep_blank: empty lines have lines in the output.
        fields: what is added to requests that do not have it.

    Raises:
        UsageError: the options contradict each other.
    """
    if options.format not in FORMATS:
        raise UsageError(f"--format is {options.format!r}", f"allowed are {', '.join(FORMATS)}")
    form = options.format
    if form == "auto":
        form = SUFFIXES.get(source.suffix, "")
    if not form:
        form = "jsonl" if source.is_json() and source.suffix != ".txt" else "lines"
    if form == "jsonl" and options.template is None:
        for given, what in ((options.system_prompt, "-sys"), (options.chat, "--chat and --raw")):
            if given is not None:
                raise UsageError(
                    f"{what} cannot be given for requests in JSON, which say that themselves",
                    "give --template to make prompts of their fields",
                )
    template = None if options.template is None else Template(options.template)
    if options.system_prompt is not None and not chat:
        raise UsageError("-sys needs a conversation", "leave out --raw, or the system message")
    return Reading(
        form,
        source.name,
        template,
        chat=chat,
        system=options.system_prompt,
        fields=fields,
        keep_blank=keep_blank and form == "lines",
    )
