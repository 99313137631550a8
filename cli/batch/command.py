"""`specx batch`: many requests in, their answers out, in an output that can be gone on with."""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import typer

from specx.backends.errors import UsageError
from specx.backends.printable import printable
from specx.cli.batch.job import Job
from specx.cli.batch.options import COLUMN, BatchGenerationOptions, InputOptions, OutputOptions
from specx.cli.batch.reading import Input, open_input, reading, settled
from specx.cli.generation import Request, requested
from specx.cli.options.parallel import read_texts
from specx.cli.options.read import (
    DraftOptions,
    ModelOptions,
    SamplingOptions,
    one_of,
    read_asked,
    with_options,
)
from specx.cli.options.values import one_at_most
from specx.cli.resident.options import SERVER, ServerOptions
from specx.cli.terminal.files import check_folder
from specx.engine.batch.items import Reader, Reading
from specx.engine.batch.lines import Form, JsonLines, TableLines, TextLines
from specx.engine.batch.output import check_beside
from specx.engine.batch.resume import Finished, Made, finished
from specx.engine.batch.sink import Sink
from specx.engine.settings import Asked

__all__ = ["About", "about", "batch", "register"]

STDOUT = (Path("-"), Path("/dev/stdout"), Path("/dev/fd/1"))


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(batch)


@with_options
def batch(
    model: ModelOptions,
    source: InputOptions,
    output: OutputOptions,
    draft: DraftOptions,
    sampling: SamplingOptions,
    generation: BatchGenerationOptions,
    held: ServerOptions,
) -> None:
    """Answer many requests from a file or a pipe, several at once.

    INPUT has OpenAI batch lines, request bodies, objects with a prompt or messages, a table with --template,
    or a text a line. What is begun with -o can be gone on with, whatever ended it: --resume.

    Exits with 0 if every request was answered, 3 if some failed, 4 if --max-errors ended it, 128 plus the
    number of the signal that ended it.
    """
    model, source = settled(model, source)
    if source.ray is not None and not source.ray.strip():  # as of a variable that is not set
        raise UsageError("--ray names no cluster", "write HOST:PORT, or auto for the one this machine is in")
    request = requested(sampling, generation)
    server = one_of("--server", held.server, SERVER)
    asked = replace(read_asked(model, draft), texts=read_texts(source.parallel))
    with ExitStack() as open_files:
        job = prepare(asked, request, source, _checked(output), open_files)
        job.server = server
        code = job.run()
    if code:
        raise typer.Exit(code)


def _checked(output: OutputOptions) -> OutputOptions:
    if output.output in STDOUT:
        output = replace(output, output=None)
    one_at_most({"--text": output.text, "--jsonl": output.jsonl})
    if output.text and output.unordered:
        raise UsageError(
            "--text and --unordered are both given: nothing would say which text answers what",
            "leave one of them out",
        )
    one_at_most({"--resume": output.resume, "--force": output.force})
    if output.output is None:
        for given, name in ((output.resume, "--resume"), (output.force, "--force")):
            if given:
                raise UsageError(f"{name} needs an output in a file", "name one: -o FILE")
        return output
    check_folder(output.output)
    if output.output.is_dir():
        raise UsageError(f"{output.output} is a folder", "give the name of a file")
    return output


@dataclass(frozen=True, slots=True)
class About:
    """What of a model matters before it is loaded."""

    identity: str
    chats: bool
    trained: int


def about(path: Path) -> About:
    """The model in a file.

    Raises:
        ModelError: it cannot be run.
    """
    from specx.backends.gguf.checks import read_runnable

    info = read_runnable(path)
    return About(f"{info.name} ({info.fingerprint[:16]})", bool(info.chat_template), info.context_length)


def prepare(
    asked: Asked, request: Request, source: InputOptions, options: OutputOptions, files: ExitStack
) -> Job:
    """Everything that can be wrong before a model is loaded, in the order in which it is told."""
    model = about(asked.model)
    chat = model.chats if source.chat is None else source.chat
    fields: dict[str, Any] = {} if source.samples == 1 else {"n": source.samples}
    if request.options.keep is not None:
        fields["n_keep"] = request.options.keep
    read = files.enter_context(closing(_Opened(open_input(source.input or "-")))).input
    how = reading(read, source, chat=chat, keep_blank=options.text, fields=fields)
    records = files.enter_context(closing(_sink(options.output)))
    if records.regular and read.regular and records.is_file(read.file.fileno()):
        raise UsageError(f"the output {records.name} is the input as well", "choose another output")
    goes_on = bool(records.size) or options.force
    if options.output is not None and records.regular:
        check_beside(options.output, read.file.fileno() if read.regular else None, ours=goes_on)
    reader = read.reader(how)
    form = _form(reader, how, options, source.samples)
    made = Made(_settings(asked, request, how, form, model), _seed(request), options.unordered)
    found = None
    if records.size and options.output is not None and records.regular and not options.force:
        made, found = _begun(made, request, form, options)
        options = replace(options, unordered=made.unordered)
    return Job(
        asked=asked,
        request=request,
        options=options,
        source=read,
        how=how,
        reader=reader,
        form=form,
        made=made,
        found=found,
        records=records,
        trained=model.trained,
        ray=source.ray,
    )


class _Opened:
    """An input, closed with the rest."""

    def __init__(self, opened: Input) -> None:
        self.input = opened

    def close(self) -> None:
        if self.input.regular:  # a thread may be reading from anything else
            self.input.file.close()


class _Terminal(Sink):
    """A terminal, which no model must be able to drive."""

    def write(self, record: bytes) -> None:
        """Add a record, its control characters as escapes."""
        super().write(printable(record.decode(errors="replace")).encode())


def _sink(path: Path | None) -> Sink:
    if path is None:
        sys.stdout.flush()
        return (_Terminal if sys.stdout.isatty() else Sink)(1, "standard output")
    return Sink(path, str(path))


def _form(reader: Reader, how: Reading, options: OutputOptions, samples: int) -> Form:
    table = reader.table
    if options.column is not None and (table is None or options.text or options.jsonl):
        raise UsageError("--column is given, and no table is written", "leave it out")
    if options.text:
        return TextLines(samples)
    if table is None or options.jsonl:
        return JsonLines()
    name = COLUMN if options.column is None else options.column
    added = (name,) if samples == 1 else tuple(f"{name}_{i + 1}" for i in range(samples))
    for column in added:
        if column in table.columns:
            raise UsageError(f"{how.name} has a column {column!r} already", "name another with --column")
    return TableLines(table.columns, table.dialect, added)


def _seed(request: Request) -> int:
    return secrets.randbits(32) if request.sampling.seed is None else request.sampling.seed


def _settings(asked: Asked, request: Request, how: Reading, form: Form, model: About) -> dict[str, Any]:
    """What the answers depend on besides the items, by names that a person knows."""
    sampling = asdict(request.sampling)
    del sampling["seed"]
    biases = {str(token): repr(bias) for token, bias in sampling.pop("logit_bias").items()}
    options, grammar = request.options, request.grammar
    header = form.header().decode(errors="surrogateescape")
    return {
        "model": model.identity,
        "form of the input": how.format,
        "form of the output": type(form).__name__,
        "header of the output": json.dumps(header) if header else None,
        "template": None if how.template is None else how.template.text,
        "system message": how.system,
        "chat": how.chat,
        **{name.replace("_", "-"): value for name, value in sampling.items()},
        "logit-bias": biases or None,
        **how.fields,
        "n-predict": options.n_predict,
        "stop": list(options.stop or ()) or None,
        "ignore-eos": options.ignore_eos,
        "grammar or schema": None
        if grammar is None
        else blake2b(grammar.encode(), digest_size=8).hexdigest(),
        "ctx-size": asked.n_ctx,
        "context-shift": asked.context_shift,
        "parse-special": asked.parse_special,
        "kernels": asked.kernels,
        "flash-attn": asked.flash_attn,
        "cache types": [asked.type_k, asked.type_v],
    }


def _begun(made: Made, request: Request, form: Form, options: OutputOptions) -> tuple[Made, Finished]:
    """How an output was made, and what it holds.

    Raises:
        UsageError: it would be made in another way now, or nobody asked to go on with it.
    """
    path = options.output
    assert path is not None
    if not options.resume:
        raise UsageError(
            f"{path} is there already", "go on with it with --resume, or begin anew with --force"
        )
    before = Made.read(path)
    before.check(made.settings, path)
    if request.sampling.seed is not None and request.sampling.seed != before.seed:
        raise UsageError(
            f"{path} was begun with --seed {before.seed}, and it is {request.sampling.seed} now",
            "leave it out, or begin anew with --force",
        )
    made = replace(before, unordered=before.unordered or options.unordered)
    found = finished(path, form.header(), named=form.named)
    if found.removed and not made.unordered:
        raise UsageError(
            f"{len(found.removed):,} records were removed from {path}, and later ones are there",
            "remove these as well, and they are all asked again"
            if options.text
            else "--unordered asks them again, and writes them behind the others",
        )
    return made, found
