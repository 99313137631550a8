"""The options that commands share, in groups. See `options` for how a command takes them.

A field's annotation holds what Typer needs, but for a metavar that follows from its type; its default is
that of the settings it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from specx.backends.settings import CACHE_TYPES
from specx.cli.options.panels import panel
from specx.engine.settings import Asked, SamplingSettings

__all__ = [
    "DRAFTERS",
    "DraftOptions",
    "GenerationOptions",
    "ModelOptions",
    "SamplingOptions",
]

DRAFTERS = ("auto", "none", "free", "suffix", "recycle", "model")
GGUF = ".gguf"  # what names a file ends with, where they stand for a drafter
KERNELS = ("auto", "specx", "attention", "stock")

THREADS = "as measured by specx probe, else one a core"

ASKED = Asked(Path())
SAMPLING = SamplingSettings()


_model, _drafting, _sampling, _generation = map(panel, ("Model", "Drafting", "Sampling", "Generation"))


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
            metavar="MODEL",
            help="A GGUF file, or the name of a model on this machine.",
            show_default=False,
        ),
    ] = None
    model_flag: Annotated[
        str | None,
        _model("-m", "--model", text="The same, as an option.", metavar="FILE", envvar="LLAMA_ARG_MODEL"),
    ] = None
    hf_repo: Annotated[
        str | None,
        _model(
            "-hf",
            "--hf-repo",
            text="A model on Hugging Face, downloaded once.",
            metavar="USER/REPO[:QUANT]",
            envvar="LLAMA_ARG_HF_REPO",
        ),
    ] = None
    ctx_size: Annotated[
        int | None,
        _model(
            "-c",
            "--ctx-size",
            text="Context in tokens; 0 is the model's own.",
            envvar="LLAMA_ARG_CTX_SIZE",
            show_default="the model's own, at most 4096",
        ),
    ] = ASKED.n_ctx
    threads: Annotated[
        int | None,
        _model(
            "-t",
            "--threads",
            text="CPU threads for decoding.",
            envvar="LLAMA_ARG_THREADS",
            show_default=THREADS,
        ),
    ] = ASKED.threads
    threads_batch: Annotated[
        int | None,
        _model("-tb", "--threads-batch", text="CPU threads for reading prompts.", show_default=THREADS),
    ] = ASKED.threads_batch
    batch_size: Annotated[
        int, _model("-b", "--batch-size", text="Tokens of a prompt per call.", envvar="LLAMA_ARG_BATCH")
    ] = ASKED.n_batch
    ubatch_size: Annotated[
        int,
        _model(
            "-ub", "--ubatch-size", text="Tokens of a prompt per compute graph.", envvar="LLAMA_ARG_UBATCH"
        ),
    ] = ASKED.n_ubatch
    gpu_layers: Annotated[
        str,
        _model(
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            text="Layers on the GPU: a number, auto or all.",
            metavar="N|auto|all",
            envvar="LLAMA_ARG_N_GPU_LAYERS",
        ),
    ] = "auto"
    rpc: Annotated[
        str | None,
        _model(
            "--rpc",
            text="Machines whose devices hold layers as well: llama.cpp's RPC servers, with commas between.",
            metavar="HOST:PORT,...",
            envvar="LLAMA_ARG_RPC",
            show_default=False,
        ),
    ] = None
    flash_attn: Annotated[
        str | None,
        _model(
            "-fa",
            "--flash-attn",
            text="Flash attention.",
            metavar="on|off|auto",
            envvar="LLAMA_ARG_FLASH_ATTN",
            show_default="on",
        ),
    ] = ASKED.flash_attn
    kernels: Annotated[
        str,
        _model(
            "--kernels",
            text="Whose kernels the CPU runs: the fastest, specx's, their attention alone, llama.cpp's.",
            metavar="|".join(KERNELS),
        ),
    ] = ASKED.kernels
    cache_type_k: Annotated[
        str | None,
        _model(
            "-ctk",
            "--cache-type-k",
            text=f"Type of the K cache: {', '.join(CACHE_TYPES)}.",
            metavar="TYPE",
            envvar="LLAMA_ARG_CACHE_TYPE_K",
            show_default="f16",
        ),
    ] = ASKED.type_k
    cache_type_v: Annotated[
        str | None,
        _model(
            "-ctv",
            "--cache-type-v",
            text="Type of the V cache, as above.",
            metavar="TYPE",
            envvar="LLAMA_ARG_CACHE_TYPE_V",
            show_default="f16",
        ),
    ] = ASKED.type_v
    mmap: Annotated[bool, _model("--mmap/--no-mmap", text="Map the file instead of reading it.")] = ASKED.mmap
    mlock: Annotated[
        bool, _model("--mlock", text="Keep the model in memory, never in swap.", envvar="LLAMA_ARG_MLOCK")
    ] = ASKED.mlock
    packed_copy: Annotated[
        bool,
        _model(
            "--packed-copy/--no-packed-copy",
            text="Keep rearranged weights in the cache directory (8 GiB at most) if starts are slow without.",
        ),
    ] = ASKED.packed_copy
    swa_full: Annotated[
        bool,
        _model(
            "--swa-full", text="Keep the whole history of sliding-window layers.", envvar="LLAMA_ARG_SWA_FULL"
        ),
    ] = ASKED.swa_full
    context_shift: Annotated[
        bool,
        _model(
            "--context-shift/--no-context-shift",
            text="When the context is full, forget the oldest tokens instead of stopping.",
            envvar="LLAMA_ARG_CONTEXT_SHIFT",
        ),
    ] = ASKED.context_shift
    parse_special: Annotated[
        bool,
        _model(
            "--parse-special",
            text="Let control tokens that messages spell out be such, as a raw prompt always does.",
        ),
    ] = ASKED.parse_special
    no_cache: Annotated[
        bool, _model("--no-cache", text="Neither use nor keep anything in the cache directory.")
    ] = not ASKED.store
    verbose: Annotated[
        bool, _model("-v", "--verbose", text="Tell every decision with its numbers, and show tracebacks.")
    ] = ASKED.verbose
    log_file: Annotated[
        str,
        _model(
            "--log-file",
            text="Write llama.cpp's own messages into it; - is standard error.",
            metavar="FILE",
            envvar="LLAMA_ARG_LOG_FILE",
            show_default=False,
        ),
    ] = ASKED.log
    profile: Annotated[
        str | None,
        _model("--profile", text="Take options from config.toml: its table [profiles.NAME].", metavar="NAME"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """How tokens are drafted. None of it changes the text."""

    ALTERNATIVES: ClassVar = (("draft_max", "draft_max_old"), ("draft_model", "hf_repo_draft"))

    drafter: Annotated[
        str,
        _drafting("--drafter", text="Where drafts come from.", metavar="|".join((*DRAFTERS, f"FILE{GGUF}"))),
    ] = ASKED.drafter
    draft_max: Annotated[
        int | None,
        _drafting(
            "--draft-max",
            text="Most drafted tokens per step.",
            envvar="LLAMA_ARG_DRAFT_MAX",
            show_default="measured",
        ),
    ] = ASKED.draft_max
    draft_model: Annotated[
        str | None,
        _drafting(
            "-md",
            "--model-draft",
            "--spec-draft-model",
            text="A smaller model, of any vocabulary, asked where that pays.",
            metavar="FILE",
            envvar="LLAMA_ARG_MODEL_DRAFT",
            show_default="the best one on this machine",
        ),
    ] = None
    hf_repo_draft: Annotated[
        str | None,
        _drafting(
            "-hfd",
            "-hfrd",
            "--hf-repo-draft",
            text="The same from Hugging Face, downloaded once.",
            metavar="USER/REPO[:QUANT]",
            envvar="LLAMA_ARG_HFD_REPO",
        ),
    ] = None
    threads_draft: Annotated[
        int | None,
        _drafting(
            "-td",
            "--threads-draft",
            text="CPU threads of the draft model.",
            show_default="those of the model",
        ),
    ] = ASKED.draft.threads
    threads_batch_draft: Annotated[
        int | None,
        _drafting(
            "-tbd", "--threads-batch-draft", text="The same for reading text.", show_default="as above"
        ),
    ] = ASKED.draft.threads_batch
    gpu_layers_draft: Annotated[
        str,
        _drafting(
            "-ngld",
            "--gpu-layers-draft",
            "--n-gpu-layers-draft",
            text="Layers of the draft model on the GPU: a number, auto or all.",
            metavar="N|auto|all",
            envvar="LLAMA_ARG_N_GPU_LAYERS_DRAFT",
        ),
    ] = "auto"
    cache_type_k_draft: Annotated[
        str | None,
        _drafting(
            "-ctkd",
            "--cache-type-k-draft",
            text="Type of its K cache. Less than 8 bits can ruin its guesses.",
            metavar="TYPE",
            show_default="f16",
            envvar="LLAMA_ARG_CACHE_TYPE_K_DRAFT",
        ),
    ] = ASKED.draft.type_k
    cache_type_v_draft: Annotated[
        str | None,
        _drafting(
            "-ctvd",
            "--cache-type-v-draft",
            text="Type of its V cache.",
            metavar="TYPE",
            show_default="f16",
            envvar="LLAMA_ARG_CACHE_TYPE_V_DRAFT",
        ),
    ] = ASKED.draft.type_v
    exact: Annotated[
        bool,
        _drafting("--exact", text="Use only batch shapes whose logits are bit-identical to plain decoding."),
    ] = ASKED.exact
    draft_max_old: Annotated[int | None, _hidden("--draft", "--draft-n", "--spec-draft-n-max")] = None
    draft_length: Annotated[
        list[str] | None, _hidden("--draft-min", "--draft-n-min", "--draft-p-min", "--spec-draft-n-min")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen."""

    seed: Annotated[
        int, _sampling("-s", "--seed", text="The same seed gives the same text; -1 chooses one.")
    ] = -1
    temperature: Annotated[
        float,
        _sampling(
            "--temp",
            "--temperature",
            text="0 always takes the most likely token.",
            envvar="LLAMA_ARG_TEMPERATURE",
        ),
    ] = SAMPLING.temperature
    top_k: Annotated[
        int, _sampling("--top-k", text="Keep the k most likely tokens; 0 is off.", envvar="LLAMA_ARG_TOP_K")
    ] = SAMPLING.top_k
    top_p: Annotated[
        float,
        _sampling(
            "--top-p", text="Keep the most likely tokens up to this mass; 1 is off.", envvar="LLAMA_ARG_TOP_P"
        ),
    ] = SAMPLING.top_p
    min_p: Annotated[
        float,
        _sampling(
            "--min-p",
            text="Keep tokens at least this likely, relative to the best; 0 is off.",
            envvar="LLAMA_ARG_MIN_P",
        ),
    ] = SAMPLING.min_p
    typical_p: Annotated[
        float, _sampling("--typical", "--typical-p", text="Keep the locally typical set; 1 is off.")
    ] = SAMPLING.typical_p
    repeat_penalty: Annotated[
        float,
        _sampling(
            "--repeat-penalty",
            text="Make recent tokens less likely; 1 is off.",
            envvar="LLAMA_ARG_REPEAT_PENALTY",
        ),
    ] = SAMPLING.repeat_penalty
    repeat_last_n: Annotated[
        int, _sampling("--repeat-last-n", text="How many tokens are recent; 0 none, -1 all.")
    ] = SAMPLING.repeat_last_n
    frequency_penalty: Annotated[
        float,
        _sampling(
            "--frequency-penalty",
            text="Penalty per occurrence; 0 is off.",
            envvar="LLAMA_ARG_FREQUENCY_PENALTY",
        ),
    ] = SAMPLING.frequency_penalty
    presence_penalty: Annotated[
        float,
        _sampling(
            "--presence-penalty",
            text="Penalty for having occurred; 0 is off.",
            envvar="LLAMA_ARG_PRESENCE_PENALTY",
        ),
    ] = SAMPLING.presence_penalty
    logit_bias: Annotated[
        list[str] | None,
        _sampling(
            "-l",
            "--logit-bias",
            text="Add to a token's logit, for example 15043+1 or 15043-inf. May be repeated.",
            metavar="ID+BIAS",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """When a generation ends, and what it may say."""

    ALTERNATIVES: ClassVar = (("grammar", "grammar_file", "json_schema", "json_schema_file"),)
    TEXTS: ClassVar = ("stop", "grammar", "json_schema")  # what must be UTF-8

    n_predict: Annotated[
        int,
        _generation(
            "-n",
            "--n-predict",
            "--predict",
            text="Most tokens to generate; -1 is no limit.",
            envvar="LLAMA_ARG_N_PREDICT",
        ),
    ] = -1
    keep: Annotated[
        int | None,
        _generation(
            "--keep",
            text="Tokens of the prompt that --context-shift never forgets; -1 is all.",
            show_default="the system message",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        _generation(
            "-r", "--reverse-prompt", "--stop", text="Stop before this text. May be repeated.", metavar="TEXT"
        ),
    ] = None
    ignore_eos: Annotated[bool, _generation("--ignore-eos", text="Go on after the model's end of text.")] = (
        False
    )
    grammar: Annotated[
        str | None, _generation("--grammar", text="A GBNF grammar the text must follow.", metavar="GBNF")
    ] = None
    grammar_file: Annotated[Path | None, _generation("--grammar-file", text="A file with one.")] = None
    json_schema: Annotated[
        str | None,
        _generation(
            "-j",
            "--json-schema",
            text="A JSON schema the text must follow; {} is any JSON object.",
            metavar="SCHEMA",
        ),
    ] = None
    json_schema_file: Annotated[Path | None, _generation("--json-schema-file", text="A file with one.")] = (
        None
    )
