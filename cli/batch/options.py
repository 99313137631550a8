"""The options of `specx batch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from specx.cli.options.read import GenerationOptions
from specx.engine.batch.survey import DEFAULT_LIMIT

__all__ = ["COLUMN", "FORMATS", "BatchGenerationOptions", "InputOptions", "OutputOptions"]

MOST_SAMPLES = 128  # choices of one response
FORMATS = ("auto", "jsonl", "lines", "csv", "tsv")
INPUT, OUTPUT = "Input", "Output"
COLUMN = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGenerationOptions(GenerationOptions):
    """When an answer ends, and what it may say, where its request does not say so."""

    n_predict: Annotated[
        int,
        typer.Option(
            "-n",
            "--n-predict",
            "--predict",
            help="Most tokens of an answer; -1 is no limit.",
            envvar="LLAMA_ARG_N_PREDICT",
            rich_help_panel="Generation",
        ),
    ] = DEFAULT_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """What is asked."""

    TEXTS: ClassVar = ("template", "system_prompt")

    input: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="Requests: JSON Lines, a table (.csv, .tsv), or a text a line; - is standard input.",
            show_default=False,
        ),
    ] = None
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="Form of the input; auto goes by its name, then by its first character.",
            metavar="|".join(FORMATS),
            rich_help_panel=INPUT,
        ),
    ] = "auto"
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="The prompt, with gaps for columns, fields or the line: 'Summarize: {text}'.",
            metavar="TEXT",
            rich_help_panel=INPUT,
        ),
    ] = None
    system_prompt: Annotated[
        str | None,
        typer.Option(
            "-sys",
            "--system-prompt",
            help="The system message before each text.",
            metavar="TEXT",
            rich_help_panel=INPUT,
        ),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Put texts into the model's chat template, or continue them as they stand.",
            show_default="--chat, if the model has a template",
            rich_help_panel=INPUT,
        ),
    ] = None
    parallel: Annotated[
        str,
        typer.Option(
            "-np",
            "--parallel",
            help="How many requests are answered at once; auto goes by memory and speed.",
            metavar="auto|N",
        ),
    ] = "auto"
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Answer on all nodes of a Ray cluster: HOST:PORT, or auto for the one this machine is in.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None
    samples: Annotated[
        int,
        typer.Option(
            "-k", "--samples", help="Answers to each request.", min=1, max=MOST_SAMPLES, rich_help_panel=INPUT
        ),
    ] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write to this file; - is standard output.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with an output that was begun, if there is one.", rich_help_panel=OUTPUT
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option("--force", help="Begin an output anew that is there already.", rich_help_panel=OUTPUT),
    ] = False
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Write the texts alone, one a line, with \\n for ends of lines in them.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help="Write JSON Lines for a table, too.", rich_help_panel=OUTPUT),
    ] = False
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            help="Name of the column that is added to a table.",
            metavar="NAME",
            show_default=COLUMN,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    unordered: Annotated[
        bool,
        typer.Option("--unordered", help="Write answers as they are finished.", rich_help_panel=OUTPUT),
    ] = False
    max_errors: Annotated[
        int | None,
        typer.Option(
            "--max-errors",
            help="Stop when more requests than this have failed.",
            min=0,
            show_default="never",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Progress and the summary as JSON lines on stderr.", rich_help_panel=OUTPUT
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option(
            "-q", "--quiet", help="Nothing on stderr unless something is wrong.", rich_help_panel=OUTPUT
        ),
    ] = False
