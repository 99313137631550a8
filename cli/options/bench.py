"""The options of `specx bench`, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specx.backends.errors import FileError, UsageError
from specx.backends.places import expanded
from specx.cli.options.groups import DRAFTERS, GGUF, KERNELS
from specx.cli.options.read import (
    DraftOptions,
    ModelOptions,
    SamplingOptions,
    allowed_drafters,
    check_threads,
    read_asked,
    sampling_settings,
)
from specx.cli.terminal.console import notice
from specx.cli.terminal.files import check_folder, check_plot

if TYPE_CHECKING:
    from specx.engine.bench.setup import BenchSettings
    from specx.engine.bench.suites import Prompt, Workload

__all__ = [
    "GreedyOptions",
    "ResultOptions",
    "SweptDraftOptions",
    "SweptModelOptions",
    "WorkOptions",
    "bench_settings",
    "check_results",
    "load_work",
]

FORMATS = ("table", "md", "csv", "json", "jsonl")
PROMPTS_PER_CATEGORY = 5  # by default: a small model on two cores then takes some minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptModelOptions(ModelOptions):
    """Which model, and how it is loaded; what can be compared takes a list."""

    threads: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--threads",
            metavar="N,N,...",
            help="CPU threads for decoding.",
            envvar="LLAMA_ARG_THREADS",
            show_default="measured",
            rich_help_panel="Model",
        ),
    ] = None  # type: ignore[assignment]  # a list in place of one number
    kernels: Annotated[
        str,
        typer.Option(
            "--kernels",
            metavar="NAME,NAME,...",
            help=f"Whose kernels the CPU runs: {', '.join(KERNELS)}.",
            rich_help_panel="Model",
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptDraftOptions(DraftOptions):
    """How tokens are drafted."""

    drafter: Annotated[
        str,
        typer.Option(
            "--drafter",
            metavar="NAME,NAME,...",
            help=f"Where drafts come from: {', '.join(DRAFTERS)}. Plain decoding always takes part.",
            rich_help_panel="Drafting",
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyOptions(SamplingOptions):
    """How the next token is chosen; greedily unless something else is said."""

    seed: Annotated[
        int,
        typer.Option(
            "-s",
            "--seed",
            help="Of the text, the choice of prompts and the order of arms.",
            rich_help_panel="Sampling",
        ),
    ] = 1
    temperature: Annotated[
        float,
        typer.Option(
            "--temp",
            "--temperature",
            help="0 always takes the most likely token.",
            envvar="LLAMA_ARG_TEMPERATURE",
            rich_help_panel="Sampling",
        ),
    ] = 0.0


def _work(*names: str, text: str, **extra: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Work", **extra)


def _result(*names: str, text: str, **extra: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Results", **extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOptions:
    """What is asked, how often, and who else answers."""

    suite: Annotated[
        str, _work("--suite", text="Prompts: a built-in suite, a file, or - for input.", metavar="NAME|FILE")
    ] = "default"
    categories: Annotated[
        str | None, _work("--categories", text="Take these categories only.", metavar="NAME,NAME,...")
    ] = None
    limit: Annotated[int, _work("--limit", text="Prompts of each category; 0 is all.")] = PROMPTS_PER_CATEGORY
    synthetic: Annotated[
        str | None,
        _work("--synthetic", text="Random tokens instead, as llama-bench has.", metavar="pp512,tg128,..."),
    ] = None
    n_predict: Annotated[int, _work("-n", "--n-predict", text="Most tokens of an answer.")] = 128
    repeats: Annotated[int, _work("-r", "--repeats", text="How often everything is answered.")] = 3
    turns: Annotated[int, _work("--turns", text="Most answers to one conversation.")] = 2
    warm: Annotated[
        bool, _work("--warm", text="Every arm learns from its answers; by default each starts from nothing.")
    ] = False
    corpus: Annotated[
        bool, _work("--corpus", text="Search the texts of `specx cache add`; by default none of them.")
    ] = False
    ignore_eos: Annotated[bool, _work("--ignore-eos", text="Go on after the model's end of text.")] = False
    peer: Annotated[
        str | None,
        _work("--peer", text="Compare with llama.cpp's server as well.", metavar="llama-server=PATH"),
    ] = None
    peer_args: Annotated[
        str, _work("--peer-args", text="More options for it, in quotes.", metavar="OPTIONS")
    ] = ""
    peer_spec: Annotated[
        str,
        _work("--peer-spec", text="Its --spec-types; none is plain decoding.", metavar="TYPE,TYPE,..."),
    ] = "none,ngram-mod"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """What is made of the measurements."""

    baseline: Annotated[
        str,
        _result("--baseline", text="Arm that speeds are relative to.", metavar="ARM", show_default="none"),
    ] = ""
    output: Annotated[
        str, _result("-o", "--output", text="Format on standard output.", metavar="|".join(FORMATS))
    ] = "table"
    plot: Annotated[
        Path | None, _result("--plot", text="Draw everything into a PNG, SVG or PDF file.", metavar="FILE")
    ] = None
    save: Annotated[
        str | None, _result("--save", text="Keep the result under a name or in a .json.", metavar="NAME|FILE")
    ] = None
    compare: Annotated[
        str | None, _result("--compare", text="Say what changed since that result.", metavar="NAME|FILE")
    ] = None
    load_from: Annotated[
        str | None, _result("--from", text="Measure nothing: show that result.", metavar="NAME|FILE")
    ] = None
    strict: Annotated[
        bool,
        _result("--strict", text="Exit with 1 if an arm of specx says anything else than plain decoding."),
    ] = False


def check_results(options: ResultOptions) -> None:
    """Raises UsageError if what is wanted of the result is impossible, before anything is measured."""
    if options.output not in FORMATS:
        raise UsageError(f"-o/--output is {options.output!r}", f"formats are {', '.join(FORMATS)}")
    if options.plot is not None:
        check_plot(options.plot)
    if options.save is not None and options.save.endswith((".json", ".jsonl")):
        check_folder(expanded(Path(options.save)))


def bench_settings(
    model: SweptModelOptions,
    draft: SweptDraftOptions,
    sampling: GreedyOptions,
    work: WorkOptions,
    results: ResultOptions,
) -> BenchSettings:
    """What to compare.

    Raises:
        UsageError: a value is not allowed.
    """
    from specx.engine.bench.setup import BenchSettings, opened_with

    for name, value, least in (
        ("-n/--n-predict", work.n_predict, 1),
        ("-r/--repeats", work.repeats, 1),
        ("--turns", work.turns, 1),
        ("--limit", work.limit, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}", f"give a number of at least {least}")
    drafters = _names("--drafter", draft.drafter, allowed_drafters(draft.drafter))
    chosen = sampling_settings(sampling)
    threads = _thread_counts(model.threads)
    plain_model = {item.name: getattr(model, item.name) for item in fields(ModelOptions)}
    plain_model |= {"threads": threads[0], "kernels": _names("--kernels", model.kernels, KERNELS)[0]}
    asked = read_asked(ModelOptions(**plain_model), replace(draft, drafter=opened_with(drafters)))
    return BenchSettings(
        asked=asked,
        drafters=drafters,
        kernels=_names("--kernels", model.kernels, KERNELS),
        threads=threads,
        sampling=chosen if chosen.seed is not None else replace(chosen, seed=_chosen_seed()),
        n_predict=work.n_predict,
        rounds=work.repeats,
        turns=work.turns,
        warm=work.warm,
        corpus=work.corpus,
        ignore_eos=work.ignore_eos,
        baseline=results.baseline,
        **_peer(work),
    )


def _names(option: str, text: str, allowed: Sequence[str]) -> list[str]:
    given = [name.strip() for name in text.split(",")]
    names = [name if name in allowed else name.lower() for name in given]
    for name, known in zip(given, names, strict=True):
        if known not in allowed:
            hint = f"allowed are {', '.join(allowed)}"
            if known.endswith(GGUF):
                hint += "; the file of a draft model is given with -md"
            raise UsageError(f"{option} is {text!r}: there is no {name!r}", hint)
    return names


def _thread_counts(text: str | None) -> list[int | None]:
    if text is None or text.strip() == "-1":
        return [None]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"-t/--threads is {text!r}", "give a number, or several with commas: 1,2,4")
    check_threads("-t/--threads", max(counts))
    return [*counts]


def _chosen_seed() -> int:
    import secrets

    return secrets.randbits(32)


def _peer(work: WorkOptions) -> dict[str, Any]:
    """The settings of another program."""
    import shlex
    import shutil

    if work.peer is None:
        for name, given, usual in (
            ("--peer-args", work.peer_args, ""),
            ("--peer-spec", work.peer_spec, WorkOptions().peer_spec),
        ):
            if given != usual:
                notice(f"{name} is not used, because no --peer is named")
        return {}
    name, separator, path = work.peer.partition("=")
    if not separator or name != "llama-server":
        raise UsageError(f"--peer is {work.peer!r}", "write --peer llama-server=/path/to/llama-server")
    program = expanded(Path(path))
    if shutil.which(program) is None:
        raise FileError(f"{path} is no program that can be run", "name the llama-server binary")
    try:
        arguments = shlex.split(work.peer_args)
    except ValueError as problem:
        raise UsageError(f"--peer-args is {work.peer_args!r}: {problem}", "close its quotes") from problem
    specs = ["" if spec == "none" else spec for spec in work.peer_spec.split(",")]
    return {"peer": program, "peer_arguments": arguments, "peer_specs": list(dict.fromkeys(specs))}


def load_work(options: WorkOptions, seed: int) -> list[Prompt | Workload]:
    """The prompts or the synthetic workloads.

    Raises:
        UsageError: there are none of that name, or a file holds something else.
    """
    from specx.engine.bench.suites import load_suite, parse_synthetic

    if options.synthetic is not None:
        for name, given, usual in (
            ("--suite", options.suite, WorkOptions().suite),
            ("--categories", options.categories, None),
        ):
            if given != usual:
                notice(f"{name} is not used, because --synthetic says what is asked")
        return [*parse_synthetic(options.synthetic)]
    categories = None if options.categories is None else [c.strip() for c in options.categories.split(",")]
    return [*load_suite(options.suite, categories, options.limit or None, seed)]
