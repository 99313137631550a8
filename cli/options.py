"""The options that commands share, and how they become settings.

A group of options is a frozen dataclass whose fields are annotated as Typer wants parameters. A command names
the groups it takes as its own parameters, and `with_options` spreads their fields over its signature:

    @with_options
    def command(model: ModelOptions, sampling: SamplingOptions) -> None: ...

Every single-valued option can also be set in the environment, as SPECX_ and its long name, and in the
configuration file. A flag beats the environment, which beats the file.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from specx.backends.errors import DownloadError, UsageError
from specx.engine.settings import LoadSettings, SamplingSettings

__all__ = [
    "DraftOptions",
    "GenerationOptions",
    "ModelOptions",
    "PromptOptions",
    "SamplingOptions",
    "check_generation",
    "load_settings",
    "prompt_text",
    "sampling_settings",
    "with_options",
]

DRAFTERS = ("auto", "none", "suffix", "recycle")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = {
    "on": "on",
    "off": "off",
    "auto": "auto",
    **dict.fromkeys(("true", "1", "enabled"), "on"),
    **dict.fromkeys(("false", "0", "disabled"), "off"),
    "-1": "auto",
}
MAX_SEED = 2**63 - 1
LOGIT_BIAS = re.compile(r"(\d+)([+-](?:inf|\d+\.?\d*|\.\d+))")

LOAD = LoadSettings(Path())
SAMPLING = SamplingSettings()


def _option(*names: str, text: str, panel: str, **extra: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **extra)


def _hidden(*names: str) -> Any:
    return typer.Option(*names, hidden=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    # Of the alternatives in a group, those from a weaker origin than the strongest one given are dropped.
    ALTERNATIVES: ClassVar = (("model", "model_flag", "hf_repo"),)

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A GGUF file, or the name of a model on this machine.", show_default=False
        ),
    ] = None
    model_flag: Annotated[
        str | None,
        _option(
            "-m",
            "--model",
            text="The same, as an option.",
            panel="Model",
            metavar="FILE",
            envvar="LLAMA_ARG_MODEL",
        ),
    ] = None
    hf_repo: Annotated[
        str | None,
        _option(
            "-hf",
            "--hf-repo",
            text="A model on Hugging Face, downloaded once.",
            panel="Model",
            metavar="USER/REPO[:QUANT]",
            envvar="LLAMA_ARG_HF_REPO",
        ),
    ] = None
    ctx_size: Annotated[
        int | None,
        _option(
            "-c",
            "--ctx-size",
            metavar="N",
            text="Context in tokens; 0 is the model's own.",
            panel="Model",
            envvar="LLAMA_ARG_CTX_SIZE",
            show_default="the model's own, at most 4096",
        ),
    ] = LOAD.n_ctx
    threads: Annotated[
        int | None,
        _option(
            "-t",
            "--threads",
            metavar="N",
            text="CPU threads for decoding.",
            panel="Model",
            envvar="LLAMA_ARG_THREADS",
            show_default="measured",
        ),
    ] = LOAD.threads
    threads_batch: Annotated[
        int | None,
        _option(
            "-tb",
            "--threads-batch",
            metavar="N",
            text="CPU threads for reading prompts.",
            panel="Model",
            show_default="all cores",
        ),
    ] = LOAD.threads_batch
    batch_size: Annotated[
        int,
        _option(
            "-b",
            "--batch-size",
            metavar="N",
            text="Tokens of a prompt per call.",
            panel="Model",
            envvar="LLAMA_ARG_BATCH",
        ),
    ] = LOAD.n_batch
    ubatch_size: Annotated[
        int,
        _option(
            "-ub",
            "--ubatch-size",
            metavar="N",
            text="Tokens of a prompt per compute graph.",
            panel="Model",
            envvar="LLAMA_ARG_UBATCH",
        ),
    ] = LOAD.n_ubatch
    gpu_layers: Annotated[
        str,
        _option(
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            text="Layers on the GPU: a number, auto or all.",
            panel="Model",
            metavar="N|auto|all",
            envvar="LLAMA_ARG_N_GPU_LAYERS",
        ),
    ] = "auto"
    flash_attn: Annotated[
        str,
        _option(
            "-fa",
            "--flash-attn",
            text="Flash attention.",
            panel="Model",
            metavar="on|off|auto",
            envvar="LLAMA_ARG_FLASH_ATTN",
        ),
    ] = LOAD.flash_attn
    cache_type_k: Annotated[
        str,
        _option(
            "-ctk",
            "--cache-type-k",
            text=f"Type of the K cache: {', '.join(CACHE_TYPES)}.",
            panel="Model",
            metavar="TYPE",
            envvar="LLAMA_ARG_CACHE_TYPE_K",
        ),
    ] = LOAD.type_k
    cache_type_v: Annotated[
        str,
        _option(
            "-ctv",
            "--cache-type-v",
            text="Type of the V cache, as above.",
            panel="Model",
            metavar="TYPE",
            envvar="LLAMA_ARG_CACHE_TYPE_V",
        ),
    ] = LOAD.type_v
    mmap: Annotated[
        bool,
        _option("--mmap/--no-mmap", text="Map the file instead of reading it.", panel="Model"),
    ] = LOAD.mmap
    mlock: Annotated[
        bool,
        _option(
            "--mlock",
            text="Keep the model in memory, never in swap.",
            panel="Model",
            envvar="LLAMA_ARG_MLOCK",
        ),
    ] = LOAD.mlock
    swa_full: Annotated[
        bool,
        _option(
            "--swa-full",
            text="Keep the whole history of sliding-window layers.",
            panel="Model",
            envvar="LLAMA_ARG_SWA_FULL",
        ),
    ] = LOAD.swa_full
    context_shift: Annotated[
        bool,
        _option(
            "--context-shift/--no-context-shift",
            text="When the context is full, forget the oldest tokens instead of stopping.",
            panel="Model",
            envvar="LLAMA_ARG_CONTEXT_SHIFT",
        ),
    ] = LOAD.context_shift
    no_cache: Annotated[
        bool,
        _option("--no-cache", text="Neither use nor keep anything in the cache directory.", panel="Model"),
    ] = not LOAD.store
    verbose: Annotated[
        bool,
        _option("-v", "--verbose", text="Show llama.cpp's own messages, and tracebacks.", panel="Model"),
    ] = LOAD.verbose


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """How tokens are drafted. None of it changes the text."""

    ALTERNATIVES: ClassVar = (("draft_max", "draft_max_old"),)

    drafter: Annotated[
        str,
        _option("--drafter", text="Where drafts come from.", panel="Drafting", metavar="|".join(DRAFTERS)),
    ] = LOAD.drafter
    draft_max: Annotated[
        int | None,
        _option(
            "--draft-max",
            metavar="N",
            text="Most drafted tokens per step.",
            panel="Drafting",
            envvar="LLAMA_ARG_DRAFT_MAX",
            show_default="measured",
        ),
    ] = LOAD.draft_max
    exact: Annotated[
        bool,
        _option(
            "--exact",
            text="Use only batch shapes whose logits are bit-identical to plain decoding.",
            panel="Drafting",
        ),
    ] = LOAD.exact
    draft_max_old: Annotated[int | None, _hidden("--draft", "--draft-n", "--spec-draft-n-max")] = None
    draft_model: Annotated[
        list[str] | None,
        _hidden("-md", "--model-draft", "--spec-draft-model", "-hfd", "--hf-repo-draft"),
    ] = None
    draft_length: Annotated[
        list[str] | None, _hidden("--draft-min", "--draft-n-min", "--draft-p-min", "--spec-draft-n-min")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen."""

    seed: Annotated[
        int,
        _option(
            "-s",
            "--seed",
            metavar="N",
            text="The same seed gives the same text; -1 chooses one.",
            panel="Sampling",
        ),
    ] = -1
    temperature: Annotated[
        float,
        _option(
            "--temp",
            "--temperature",
            metavar="X",
            text="0 always takes the most likely token.",
            panel="Sampling",
            envvar="LLAMA_ARG_TEMPERATURE",
        ),
    ] = SAMPLING.temperature
    top_k: Annotated[
        int,
        _option(
            "--top-k",
            metavar="N",
            text="Keep the k most likely tokens; 0 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_TOP_K",
        ),
    ] = SAMPLING.top_k
    top_p: Annotated[
        float,
        _option(
            "--top-p",
            metavar="X",
            text="Keep the most likely tokens up to this mass; 1 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_TOP_P",
        ),
    ] = SAMPLING.top_p
    min_p: Annotated[
        float,
        _option(
            "--min-p",
            metavar="X",
            text="Keep tokens at least this likely, relative to the best; 0 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_MIN_P",
        ),
    ] = SAMPLING.min_p
    typical_p: Annotated[
        float,
        _option(
            "--typical",
            "--typical-p",
            text="Keep the locally typical set; 1 is off.",
            panel="Sampling",
            metavar="X",
        ),
    ] = SAMPLING.typical_p
    repeat_penalty: Annotated[
        float,
        _option(
            "--repeat-penalty",
            metavar="X",
            text="Make recent tokens less likely; 1 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_REPEAT_PENALTY",
        ),
    ] = SAMPLING.repeat_penalty
    repeat_last_n: Annotated[
        int,
        _option(
            "--repeat-last-n",
            metavar="N",
            text="How many tokens are recent; 0 none, -1 all.",
            panel="Sampling",
        ),
    ] = SAMPLING.repeat_last_n
    frequency_penalty: Annotated[
        float,
        _option(
            "--frequency-penalty",
            metavar="X",
            text="Penalty per occurrence; 0 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_FREQUENCY_PENALTY",
        ),
    ] = SAMPLING.frequency_penalty
    presence_penalty: Annotated[
        float,
        _option(
            "--presence-penalty",
            metavar="X",
            text="Penalty for having occurred; 0 is off.",
            panel="Sampling",
            envvar="LLAMA_ARG_PRESENCE_PENALTY",
        ),
    ] = SAMPLING.presence_penalty
    logit_bias: Annotated[
        list[str] | None,
        _option(
            "-l",
            "--logit-bias",
            text="Add to a token's logit, for example 15043+1 or 15043-inf. May be repeated.",
            panel="Sampling",
            metavar="ID+BIAS",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """When a generation ends, and what it may say."""

    ALTERNATIVES: ClassVar = (("grammar", "grammar_file", "json_schema", "json_schema_file"),)

    n_predict: Annotated[
        int,
        _option(
            "-n",
            "--n-predict",
            "--predict",
            metavar="N",
            text="Most tokens to generate; -1 is no limit.",
            panel="Generation",
            envvar="LLAMA_ARG_N_PREDICT",
        ),
    ] = -1
    stop: Annotated[
        list[str] | None,
        _option(
            "-r",
            "--reverse-prompt",
            "--stop",
            text="Stop before this text. May be repeated.",
            panel="Generation",
            metavar="TEXT",
        ),
    ] = None
    ignore_eos: Annotated[
        bool,
        _option("--ignore-eos", text="Go on after the model's end of text.", panel="Generation"),
    ] = False
    grammar: Annotated[
        str | None,
        _option("--grammar", text="A GBNF grammar the text must follow.", panel="Generation", metavar="GBNF"),
    ] = None
    grammar_file: Annotated[
        Path | None,
        _option("--grammar-file", text="A file with one.", panel="Generation", metavar="FILE"),
    ] = None
    json_schema: Annotated[
        str | None,
        _option(
            "-j",
            "--json-schema",
            text="A JSON schema the text must follow; {} is any JSON object.",
            panel="Generation",
            metavar="SCHEMA",
        ),
    ] = None
    json_schema_file: Annotated[
        Path | None,
        _option("--json-schema-file", text="A file with one.", panel="Generation", metavar="FILE"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What the model is asked."""

    prompt: Annotated[
        str | None,
        _option(
            "-p", "--prompt", text="The prompt.", panel="Prompt", metavar="TEXT", allow_from_autoenv=False
        ),
    ] = None
    file: Annotated[
        Path | None,
        _option(
            "-f",
            "--file",
            text="A file with the prompt (- is standard input); it comes before -p.",
            panel="Prompt",
            metavar="FILE",
        ),
    ] = None
    system_prompt: Annotated[
        str | None,
        _option("-sys", "--system-prompt", text="The system message.", panel="Prompt", metavar="TEXT"),
    ] = None
    escape: Annotated[
        bool,
        _option(
            "-e",
            "--escape",
            text=r"Turn \n, \t and the like in -p and -sys into the characters.",
            panel="Prompt",
        ),
    ] = False


ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def prompt_text(text: str, options: PromptOptions) -> str:
    """`text` of -p or -sys, with escapes resolved if that was asked for.

    Raises:
        UsageError: the shell passed bytes that are not UTF-8.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python marks such bytes
        raise UsageError("the prompt on the command line is not valid UTF-8", "give it as a file with -f")
    if not options.escape:
        return text
    return re.sub(r"\\([nrt\\'\"])", lambda match: ESCAPES[match[1]], text)


Command = Callable[..., None]


def with_options(command: Command) -> Command:
    """`command` with the fields of its option groups as its parameters."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def run(ctx: typer.Context, **values: Any) -> None:
        for name, group in groups.items():
            chosen = {field.name: values.pop(field.name) for field in fields(group)}
            for names in getattr(group, "ALTERNATIVES", ()):
                _drop_weaker(ctx, chosen, names)
            values[name] = group(**chosen)
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in fields(group):
        kind, declared = get_args(hints[field.name])
        info = copy(declared)
        name = _long_name((str(info.default), *(info.param_decls or ())))
        if name and not info.hidden and "list" not in str(kind):
            own = "SPECX_" + name.upper().replace("-", "_")
            info.envvar = [own, *([info.envvar] if info.envvar else [])]
            info.show_envvar = False
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[kind, info],
            )
        )
    return parameters


def _long_name(declarations: tuple[str, ...]) -> str:
    """The first long name among `declarations`, without dashes."""
    return next((name[2:].split("/")[0] for name in declarations if name.startswith("--")), "")


def _drop_weaker(ctx: typer.Context, values: dict[str, Any], names: tuple[str, ...]) -> None:
    order = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")

    def strength(name: str) -> int:
        source = ctx.get_parameter_source(name)
        return order.index(source.name) if source and values[name] is not None else 0

    strongest = max(map(strength, names))
    for name in names:
        if strength(name) < strongest:
            values[name] = None


def load_settings(model: ModelOptions, draft: DraftOptions | None = None) -> LoadSettings:
    """What to load and how.

    Raises:
        UsageError: no model or more than one is named, or a value is not allowed.
        DownloadError: a model of Hugging Face could not be fetched.
    """
    draft = draft or DraftOptions()
    _announce_ignored(draft)
    most = draft.draft_max if draft.draft_max is not None else draft.draft_max_old
    return LoadSettings(
        model=_locate(model),
        n_ctx=None if model.ctx_size is None else _at_least("-c/--ctx-size", model.ctx_size, 0),
        n_batch=_at_least("-b/--batch-size", model.batch_size, 1),
        n_ubatch=min(_at_least("-ub/--ubatch-size", model.ubatch_size, 1), model.batch_size),
        threads=_threads("-t/--threads", model.threads),
        threads_batch=_threads("-tb/--threads-batch", model.threads_batch),
        n_gpu_layers=_gpu_layers(model.gpu_layers),
        flash_attn=FLASH_ATTENTION[_one_of("-fa/--flash-attn", model.flash_attn, FLASH_ATTENTION)],
        type_k=_one_of("-ctk/--cache-type-k", model.cache_type_k, CACHE_TYPES),
        type_v=_one_of("-ctv/--cache-type-v", model.cache_type_v, CACHE_TYPES),
        mmap=model.mmap,
        mlock=model.mlock,
        swa_full=model.swa_full,
        drafter=_one_of("--drafter", draft.drafter, DRAFTERS),
        draft_max=None if most is None else _at_least("--draft-max", most, 0),
        exact=draft.exact,
        context_shift=model.context_shift,
        store=not model.no_cache,
        verbose=model.verbose,
    )


def _announce_ignored(draft: DraftOptions) -> None:
    from specx.cli.console import notice

    if draft.draft_max_old is not None:
        notice("--draft, --draft-n and --spec-draft-n-max are older names of --draft-max")
    for name in draft.draft_model or ():
        notice(f"draft models are not supported by this version: going on without {name}")
    if draft.draft_length:
        notice("specx decides from measurements how much to draft: ignoring the lower limits on drafts")


def _locate(model: ModelOptions) -> Path:
    from specx.backends.models import find_model

    named = [name for name in (model.model, model.model_flag, model.hf_repo) if name]
    if len(named) > 1:
        raise UsageError(
            f"more than one model is named: {' and '.join(named)}",
            "a prompt goes after -p" if model.model else "give either -m or -hf",
        )
    if model.hf_repo:
        return _fetch(model.hf_repo)
    return find_model(named[0] if named else None)


def _fetch(name: str) -> Path:
    from specx.backends.download import pull
    from specx.cli.pull import transfer_bar

    try:
        return pull(name, offline=True)
    except DownloadError:
        with transfer_bar() as progress:
            return pull(name, progress=progress)


def _at_least(name: str, value: int, lowest: int) -> int:
    if value < lowest:
        raise UsageError(f"{name} is {value}", f"give a number of at least {lowest}")
    return value


def _threads(name: str, count: int | None) -> int | None:
    # -1 is llama.cpp's way to leave it open
    return None if count in (None, -1) else _at_least(name, count, 1)


def _gpu_layers(value: str) -> int:
    if value in ("auto", "all"):
        return LOAD.n_gpu_layers
    if re.fullmatch(r"-1|\d+", value):
        return int(value)
    raise UsageError(f"-ngl/--gpu-layers is {value!r}", "give a number of layers, auto or all")


def _one_of(name: str, value: str, allowed: tuple[str, ...] | Mapping[str, str]) -> str:
    if value.lower() in allowed:
        return value.lower()
    shown = allowed if isinstance(allowed, tuple) else dict.fromkeys(allowed.values())
    raise UsageError(f"{name} is {value!r}", f"allowed are {', '.join(shown)}")


def sampling_settings(options: SamplingOptions) -> SamplingSettings:
    """How to sample.

    Raises:
        UsageError: a value is not allowed.
    """
    for name, value, low, high in (
        ("--temp", options.temperature, 0, math.inf),
        ("--top-p", options.top_p, 0, 1),
        ("--min-p", options.min_p, 0, 1),
        ("--typical", options.typical_p, 0, 1),
        ("--repeat-penalty", options.repeat_penalty, 0, math.inf),
        ("--frequency-penalty", options.frequency_penalty, -math.inf, math.inf),
        ("--presence-penalty", options.presence_penalty, -math.inf, math.inf),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            between = f" from {low} to {high}" if high == 1 else " of at least 0" if low == 0 else ""
            raise UsageError(f"{name} is {value}", f"give a number{between}")
    if not -1 <= options.seed <= MAX_SEED:
        raise UsageError(f"-s/--seed is {options.seed}", f"give a number from 0 to {MAX_SEED}, or -1")
    if options.repeat_penalty == 0:
        raise UsageError("--repeat-penalty is 0", "1 switches it off")
    return SamplingSettings(
        seed=None if options.seed == -1 else options.seed,
        temperature=options.temperature,
        top_k=max(options.top_k, 0),
        top_p=options.top_p,
        min_p=options.min_p,
        typical_p=options.typical_p,
        repeat_penalty=options.repeat_penalty,
        repeat_last_n=_at_least("--repeat-last-n", options.repeat_last_n, -1),
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        logit_bias=dict(map(_bias, options.logit_bias or ())),
    )


def check_generation(options: GenerationOptions) -> None:
    """Raises UsageError if a limit or a stop string makes no sense."""
    _at_least("-n/--n-predict", options.n_predict, -2)
    if "" in (options.stop or ()):
        raise UsageError("-r/--stop is empty", "leave it out, or give some text")


def _bias(text: str) -> tuple[int, float]:
    match = LOGIT_BIAS.fullmatch(text)
    if match is None:
        raise UsageError(
            f"-l/--logit-bias is {text!r}",
            "give a token id and what to add, for example 15043+1 or 15043-inf",
        )
    return int(match[1]), float(match[2])
