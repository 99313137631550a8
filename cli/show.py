"""`specx show`: what a GGUF file is, without running it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specx.backends.errors import ModelError, UsageError
from specx.backends.settings import CACHE_TYPES, DEFAULT_CTX
from specx.cli.terminal.console import notice, stdout, write
from specx.cli.terminal.tables import show_fields, show_table
from specx.engine.setup.explain import gibibytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specx.backends.gguf.file import GGUFInfo
    from specx.backends.hub.models import FoundModel
    from specx.backends.llama.memory import MemoryNeed

__all__ = ["register", "show"]


def register(app: typer.Typer) -> None:
    """Add `show` to `app`."""
    app.command("show")(show)


def show(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF file, or the name of a model on this machine."),
    ] = None,
    model_flag: Annotated[
        str | None, typer.Option("-m", "--model", metavar="FILE", help="The same, as an option.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Every tensor with shape, type and size.")
    ] = False,
    template: Annotated[bool, typer.Option("--template", help="The chat template and nothing else.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Every model found on this machine.")] = False,
    ctx_size: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--ctx-size",
            metavar="N",
            min=0,
            help="Context to count the memory for; 0 is the model's own.",
            show_default=f"the model's own, at most {DEFAULT_CTX}",
        ),
    ] = None,
    type_k: Annotated[
        str, typer.Option("-ctk", "--cache-type-k", metavar="TYPE", help="Type of the K cache.")
    ] = "f16",
    type_v: Annotated[
        str, typer.Option("-ctv", "--cache-type-v", metavar="TYPE", help="Type of the V cache.")
    ] = "f16",
) -> None:
    """Show what a model file holds and what it takes to run it."""
    from specx.backends.gguf.file import read_gguf
    from specx.backends.hub.models import find_model, list_models, own_folders
    from specx.cli.options.read import one_of
    from specx.cli.options.values import one_at_most

    if model and model_flag:
        raise UsageError(f"more than one model is named: {model} and {model_flag}", "leave one of them out")
    one_at_most({"--list": list_all, "a model": model})  # one of -m may be from the configuration
    one_at_most({"--list": list_all, "--template": template, "--tensors": tensors})
    type_k = one_of("-ctk/--cache-type-k", type_k, tuple(CACHE_TYPES))
    type_v = one_of("-ctv/--cache-type-v", type_v, tuple(CACHE_TYPES))
    if list_all:
        for folder in own_folders():
            if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where it may not look
                notice(f"{folder}, where models are looked for, is no folder")
        _show_list(list_models(), as_json=as_json)
        return
    info = read_gguf(find_model(model if model_flag is None else model_flag))
    if template:
        if info.chat_template is None:
            raise ModelError(f"{info.path} has no chat template", "specx chat uses ChatML with it")
        shown = info.chat_template.rstrip("\n") + "\n"
        write(shown)
        return
    memory = _memory(info, ctx_size, type_k, type_v)
    if as_json:
        write(json.dumps(_record(info, memory, tensors=tensors), indent=2) + "\n")
        return
    show_fields(_summary(info, memory))
    if tensors:
        stdout().print()
        show_table(
            ("tensor", "shape", "type", "size"),
            [(t.name, " x ".join(map(str, t.shape)), t.type, gibibytes(t.nbytes)) for t in info.tensors],
        )


def _memory(info: GGUFInfo, ctx_size: int | None, type_k: str, type_v: str) -> MemoryNeed:
    """What running it on this machine's main memory takes, drafts included."""
    from specx.backends.llama.memory import predict_memory, wanted_context
    from specx.backends.machine.machine import this_cpu
    from specx.backends.settings import Load
    from specx.engine.setup.snapshots import best_snapshots

    threads, n_ctx = this_cpu().default_threads, wanted_context(ctx_size, info.context_length)
    kept = best_snapshots(info)
    load = Load(info.path, threads, threads, n_ctx=n_ctx, type_k=type_k, type_v=type_v, snapshots=kept)
    return predict_memory(info, load)


def _record(info: GGUFInfo, memory: MemoryNeed, *, tensors: bool) -> dict[str, Any]:
    fields = (
        "name architecture size version file_type main_type bytes_by_type parameters context_length "
        "embedding_length blocks heads kv_heads key_length value_length feed_forward_length vocabulary_size "
        "tokenizer pre_tokenizer chat_template sliding_window state experts experts_used nextn_layers "
        "fingerprint"
    )
    record: dict[str, Any] = {"path": str(info.path), "parts": [str(part) for part in info.parts]}
    record |= {field: getattr(info, field) for field in fields.split()}
    record["memory"] = memory.to_json()
    record["head_rows"], record["drafts_only"] = info.head_rows, info.trim is not None
    record["speculation"] = {"possible": info.plain_reason is None, "reason": info.plain_reason}
    if tensors:
        record["tensors"] = [
            {"name": t.name, "shape": t.shape, "type": t.type, "bytes": t.nbytes} for t in info.tensors
        ]
    return record


def _summary(info: GGUFInfo, memory: MemoryNeed) -> list[tuple[str, str]]:
    """The lines of the summary as (label, text), those without content left out."""
    from specx.backends.gguf.mtp import has_mtp

    split = f" in {len(info.parts)} parts" if len(info.parts) > 1 else ""
    rest = memory.working - memory.weights - memory.kv
    mix = ", ".join(f"{kind} {size / info.weight_bytes:.1%}" for kind, size in info.bytes_by_type.items())
    heads = f"{info.heads} heads" if info.heads else "no attention"
    shared = sorted(set(info.kv_heads) - {0})
    if info.heads and shared:
        keys = "key" if shared == [1] else "keys"
        heads += f" sharing {' or '.join(map(str, shared))} {keys} of {info.key_length}"
    experts = f"{info.experts_used} of {info.experts} per token" if info.experts else ""
    tokenizer = ", ".join(filter(None, (info.tokenizer, info.pre_tokenizer)))
    window = f"{info.sliding_window:,} tokens in the windowed layers" if info.sliding_window else ""
    rows = [
        ("file", f"{info.path} ({gibibytes(info.size)}{split}, GGUF {info.version})"),
        ("name", info.name),
        ("architecture", info.architecture + ("" if info.state == "attention" else f", {info.state}")),
        ("parameters", f"{_count(info.parameters)} in {info.blocks} layer{'' if info.blocks == 1 else 's'}"),
        ("quantization", f"{info.file_type} ({mix})"),
        ("attention", heads),
        ("experts", experts),
        ("window", window),
        ("context", f"{info.context_length:,} tokens" if info.context_length else ""),
        ("vocabulary", f"{info.vocabulary_size:,} tokens ({tokenizer})" if info.vocabulary_size else "none"),
        ("trimmed", f"scores {info.head_rows:,} of them: it drafts only" if info.trim else ""),
        ("draft head", _head(info)),
        ("made", _made(info)),
        ("chat template", f"{len(info.chat_template):,} characters" if info.chat_template else "none"),
        (
            "memory",
            f"{gibibytes(memory.working)} = {gibibytes(memory.weights)} weights + {gibibytes(memory.kv)} "
            f"KV cache at {memory.n_ctx:,} tokens + {gibibytes(rest)} for computing and all else",
        ),
        ("several texts", f"{gibibytes(memory.kv)} more for each that is written at the same time"),
        ("speculation", _speculation(info)),
        ("drafts itself", "with MTP layers" if has_mtp(info) else ""),
        ("fingerprint", info.fingerprint),
    ]
    return [(label, text) for label, text in rows if text]


def _head(info: GGUFInfo) -> str:
    """What a draft head reads and scores; empty for other files."""
    from specx.backends.gguf.heads import HEADS, head_of

    if info.architecture not in HEADS:
        return ""
    try:
        return head_of(info).told()
    except ModelError as error:
        return error.message


def _made(info: GGUFInfo) -> str:
    """What specx made it from and with; empty if it did not."""
    told = {key.removeprefix("specx.made."): value for key, value in info.metadata.items()}
    if "how" not in told:
        return ""
    return (
        f"by specx {told.get('specx')} on {told.get('date')}: {told['how']} of {told.get('from')} for "
        f"{told.get('for')} ({told.get('parameters')})"
    )


def _speculation(info: GGUFInfo) -> str:
    if info.plain_reason:
        return f"no: {info.plain_reason}"
    if info.can_go_back:
        from specx.engine.setup.snapshots import best_snapshots

        kept = best_snapshots(info)
        return f"yes, in chains of at most {kept}: so many earlier states of its recurrent layers are kept"
    if info.sliding_window:
        return "yes, in chains; in trees with --swa-full, which keeps what its windowed layers would forget"
    return "yes, in trees and chains"


def _show_list(models: Sequence[FoundModel], *, as_json: bool) -> None:
    if as_json:
        rows = [{"name": m.name, "where": m.where, "size": m.size, "path": str(m.path)} for m in models]
        write(json.dumps(rows, indent=2) + "\n")
        return
    if not models:
        raise ModelError("no model was found on this machine", "specx pull ORG/REPO fetches one")
    found = [(m.name, gibibytes(m.size), m.where, str(m.path)) for m in models]
    show_table(("name", "size", "where", "path"), found, whole=["name"])


def _count(number: int) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,}"
