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
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from specx.backends.errors import DownloadError, UsageError
from specx.backends.llama.cache_types import check_flash_attention
from specx.backends.places import expanded
from specx.backends.printable import is_text
from specx.backends.settings import ALL_LAYERS, CACHE_TYPES, MAX_THREADS
from specx.cli.options.groups import (
    DRAFTERS,
    GGUF,
    KERNELS,
    DraftOptions,
    GenerationOptions,
    ModelOptions,
    SamplingOptions,
)
from specx.cli.options.prompt import PromptOptions
from specx.engine.settings import Asked, AskedModel, SamplingSettings

__all__ = [
    "DraftOptions",
    "GenerationOptions",
    "ModelOptions",
    "PromptOptions",
    "SamplingOptions",
    "allowed_drafters",
    "check_generation",
    "check_threads",
    "one_of",
    "prompt_text",
    "read_asked",
    "rpc_servers",
    "sampling_settings",
    "with_options",
]

FLASH_ATTENTION = {
    "on": "on",
    "off": "off",
    "auto": "auto",
    **dict.fromkeys(("true", "1", "enabled"), "on"),
    **dict.fromkeys(("false", "0", "disabled"), "off"),
    "-1": "auto",
}
METAVARS = {int: "N", float: "X", Path: "FILE"}
MAX_SEED = 2**63 - 1
MAX_SINGLE = 3.4e38  # logits are in single precision
LOGIT_BIAS = re.compile(r"(\d{1,18})([+-](?:inf|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))")


ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def prompt_text(text: str, options: PromptOptions) -> str:
    """`text` of -p, -sys or --stop, with escapes resolved if that was asked for."""
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
            # No shell resolves ~ for the environment, the configuration or `--file=~/x`.
            chosen |= {key: expanded(value) for key, value in chosen.items() if isinstance(value, Path)}
            for text in getattr(group, "TEXTS", ()):
                chosen[text] = _unicode(text, chosen[text])
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
        if info.metavar is None:
            info.metavar = next(
                (METAVARS[part] for part in (kind, *get_args(kind)) if part in METAVARS), None
            )
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


def _unicode(name: str, value: str | list[str] | None) -> str | list[str] | None:
    """A text, or several, of the command line: what a shell passes is read as UTF-8, whatever the locale.

    Python marks the bytes that it could not read as surrogates.

    Raises:
        UsageError: they are not UTF-8.
    """
    if isinstance(value, list):
        return [text for each in value if isinstance(text := _unicode(name, each), str)]
    if value is None:
        return None
    try:
        return value.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        offset, char = next((i, c) for i, c in enumerate(value) if "\ud800" <= c <= "\udfff")
    marked = "\udc80" <= char <= "\udcff"
    what = f"byte 0x{ord(char) - 0xDC00:02x}" if marked else f"surrogate {char!a}"
    raise UsageError(
        f"the value of --{name.replace('_', '-')} on the command line is not valid UTF-8: "
        f"{what} at character {offset}",
        "give it in UTF-8, or as a file where there is an option for one",
    )


def _drop_weaker(ctx: typer.Context, values: dict[str, Any], names: tuple[str, ...]) -> None:
    order = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")

    def strength(name: str) -> int:
        source = ctx.get_parameter_source(name)
        return order.index(source.name) if source and values[name] is not None else 0

    strongest = max(map(strength, names))
    for name in names:
        if strength(name) < strongest:
            values[name] = None


def read_asked(model: ModelOptions, draft: DraftOptions | None = None) -> Asked:
    """What was asked for.

    Raises:
        UsageError: no model or more than one is named, or a value is not allowed.
        DownloadError: a model of Hugging Face could not be fetched.
    """
    draft = _file_as_drafter(draft or DraftOptions())
    most = draft.draft_max if draft.draft_max is not None else draft.draft_max_old
    target = _locate(model)
    named = _locate_draft(draft)
    _announce_ignored(draft, target, named)
    asked = Asked(
        model=target,
        n_ctx=None if model.ctx_size is None else _at_least("-c/--ctx-size", model.ctx_size, 0),
        n_batch=_at_least("-b/--batch-size", model.batch_size, 1),
        n_ubatch=_at_least("-ub/--ubatch-size", model.ubatch_size, 1),
        threads=_threads("-t/--threads", model.threads),
        threads_batch=_threads("-tb/--threads-batch", model.threads_batch),
        n_gpu_layers=_gpu_layers(model.gpu_layers),
        flash_attn=_flash_attention(model.flash_attn),
        kernels=one_of("--kernels", model.kernels, KERNELS),
        type_k=_cache_type("-ctk/--cache-type-k", model.cache_type_k),
        type_v=_cache_type("-ctv/--cache-type-v", model.cache_type_v),
        rpc=rpc_servers(model),
        mmap=model.mmap,
        mlock=model.mlock,
        packed_copy=model.packed_copy,
        swa_full=model.swa_full,
        drafter=one_of("--drafter", draft.drafter, allowed_drafters(draft.drafter), besides=f"FILE{GGUF}"),
        draft_max=None if most is None else _at_least("--draft-max", most, 0),
        draft=AskedModel(
            model=named,
            threads=_threads("-td/--threads-draft", draft.threads_draft),
            threads_batch=_threads("-tbd/--threads-batch-draft", draft.threads_batch_draft),
            n_gpu_layers=_gpu_layers(draft.gpu_layers_draft, "-ngld/--gpu-layers-draft"),
            type_k=_cache_type("-ctkd/--cache-type-k-draft", draft.cache_type_k_draft),
            type_v=_cache_type("-ctvd/--cache-type-v-draft", draft.cache_type_v_draft),
        ),
        exact=draft.exact,
        context_shift=model.context_shift,
        parse_special=model.parse_special,
        store=not model.no_cache,
        verbose=model.verbose,
        log=model.log_file if model.log_file in ("", "-") else str(expanded(Path(model.log_file))),
    )
    check_flash_attention(
        asked.flash_attn, asked.type_v, asked.draft.type_v if draft.drafter != "none" else None
    )
    return asked


def _file_as_drafter(draft: DraftOptions) -> DraftOptions:
    """`--drafter FILE.gguf` is that file, asked beside the drafts that cost nothing.

    Raises:
        UsageError: another one is named as well.
    """
    if not draft.drafter.lower().endswith(GGUF):
        return draft
    if draft.draft_model is not None or draft.hf_repo_draft is not None:
        raise UsageError("more than one draft model is named", "give either --drafter FILE or -md FILE")
    return replace(draft, drafter=DraftOptions().drafter, draft_model=draft.drafter)


def allowed_drafters(asked: str) -> tuple[str, ...]:
    """Names of drafters, comma-separated ones in `asked` included if another package registers them.

    Those are looked for only if they are needed, because that takes longer than a start may.
    """
    if all(name.strip().lower() in DRAFTERS for name in asked.split(",")):
        return DRAFTERS
    from specx.drafters.registry import names

    return names()


def rpc_servers(model: ModelOptions) -> tuple[str, ...]:
    """The servers of --rpc, each once.

    Raises:
        UsageError: one of them is not HOST:PORT, or there is none in what is given.
    """
    servers = [server.strip() for server in (model.rpc or "").split(",") if server.strip()]
    if model.rpc and not servers:
        raise UsageError(f"--rpc names no server: {model.rpc!r}", "write HOST:PORT, with commas between")
    for server in servers:
        from specx.backends.llama.rpc import endpoint_problem

        if problem := endpoint_problem(server):
            raise UsageError(f"--rpc names {server!r}: {problem}", "write HOST:PORT, with commas between")
    return tuple(dict.fromkeys(servers))


def _flash_attention(value: str | None) -> str | None:
    if value is None:
        return None
    return FLASH_ATTENTION[one_of("-fa/--flash-attn", value, FLASH_ATTENTION)]


def _cache_type(name: str, value: str | None) -> str | None:
    return None if value is None else one_of(name, value, CACHE_TYPES)


def _announce_ignored(draft: DraftOptions, target: Path, named: Path | None) -> None:
    from specx.cli.terminal.console import notice

    if named is not None and draft.drafter == "none":
        notice(f"--drafter none: the draft model {named.name} is not used")
    elif named is not None and named.resolve() == target.resolve():
        notice("the draft model is the model itself: asking it takes as long as a step")

    if draft.draft_max_old is not None:
        notice("--draft, --draft-n and --spec-draft-n-max are older names of --draft-max")
    if draft.draft_length:
        notice("specx decides from measurements how much to draft: ignoring the lower limits on drafts")


def _locate(model: ModelOptions) -> Path:
    from specx.backends.hub.models import find_model

    named = [name for name in (model.model, model.model_flag, model.hf_repo) if name is not None]
    if len(named) > 1:
        raise UsageError(
            f"more than one model is named: {' and '.join(named)}",
            "a prompt goes after -p" if model.model else "give either -m or -hf",
        )
    if model.hf_repo is not None:
        return _fetch(model.hf_repo)
    return find_model(named[0] if named else None)


def _locate_draft(draft: DraftOptions) -> Path | None:
    from specx.backends.hub.models import find_model

    if draft.draft_model is not None and draft.hf_repo_draft is not None:
        raise UsageError("more than one draft model is named", "give either -md or -hfd")
    if draft.hf_repo_draft is not None:
        return _fetch(draft.hf_repo_draft)
    return None if draft.draft_model is None else find_model(draft.draft_model)


def _fetch(name: str) -> Path:
    from specx.backends.hub.download import pull
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
    if count in (None, -1):
        return None
    check_threads(name, _at_least(name, count, 1))
    return count


def check_threads(name: str, count: int) -> None:
    """Refuse more threads than llama.cpp can have.

    Raises:
        UsageError: there are too many.
    """
    if count > MAX_THREADS:
        raise UsageError(f"{name} is {count}", f"llama.cpp takes at most {MAX_THREADS} threads")


def _gpu_layers(value: str, name: str = "-ngl/--gpu-layers") -> int | None:
    if value == "auto":
        return None
    if value == "all":
        return ALL_LAYERS
    if re.fullmatch(r"-1|\d+", value):
        return int(value)
    raise UsageError(f"{name} is {value!r}", "give a number of layers, auto or all")


def one_of(
    name: str, value: str, allowed: tuple[str, ...] | Mapping[str, str], *, besides: str | None = None
) -> str:
    """`value`, in small letters if need be. `besides` is allowed, too, and was looked for before.

    Raises:
        UsageError: it is not `allowed`.
    """
    if value in allowed:
        return value
    if value.lower() in allowed:
        return value.lower()
    shown = allowed if isinstance(allowed, tuple) else dict.fromkeys(allowed.values())
    told = (*shown, besides) if besides else shown
    raise UsageError(f"{name} is {value!r}", f"allowed are {', '.join(told)}")


def sampling_settings(options: SamplingOptions) -> SamplingSettings:
    """How to sample.

    Raises:
        UsageError: a value is not allowed.
    """
    for name, value, low, high in (
        ("--temp", options.temperature, 0, MAX_SINGLE),
        ("--top-p", options.top_p, 0, 1),
        ("--min-p", options.min_p, 0, 1),
        ("--typical", options.typical_p, 0, 1),
        ("--repeat-penalty", options.repeat_penalty, 0, MAX_SINGLE),
        ("--frequency-penalty", options.frequency_penalty, -MAX_SINGLE, MAX_SINGLE),
        ("--presence-penalty", options.presence_penalty, -MAX_SINGLE, MAX_SINGLE),
    ):
        if not low <= value <= high:  # NaN is nowhere
            least = " of at least 0" if low == 0 else ""
            beyond = abs(value) > MAX_SINGLE
            between = f" from {low:g} to {high:g}" if high == 1 or beyond else least
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
    """Raises UsageError if a limit makes no sense, or a text cannot be one."""
    _at_least("-n/--n-predict", options.n_predict, -1)
    _at_least("--keep", options.keep or 0, -1)
    if "" in (options.stop or ()):
        raise UsageError("-r/--stop is empty", "leave it out, or give some text")
    if not all(map(is_text, options.stop or ())):
        raise UsageError("-r/--stop is not valid UTF-8", "no text would ever match it")


def _bias(text: str) -> tuple[int, float]:
    match = LOGIT_BIAS.fullmatch(text)
    if match is None:
        raise UsageError(
            f"-l/--logit-bias is {text!r}",
            "give a token id and what to add, for example 15043+1 or 15043-inf",
        )
    bias = float(match[2])
    if abs(bias) > MAX_SINGLE and "inf" not in match[2]:
        raise UsageError(
            f"-l/--logit-bias is {text!r}", f"give a bias from {-MAX_SINGLE:g} to {MAX_SINGLE:g}, or -inf"
        )
    return int(match[1]), bias
