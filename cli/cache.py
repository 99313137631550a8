"""`specx cache`: what specx keeps on this machine, how to be rid of it, and texts to draft from."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specx.backends.printable import one_line
from specx.cli.help import ListedGroup

if TYPE_CHECKING:
    from specx.backends.store import Entry, Store
    from specx.engine.learned.corpora import CorpusText

__all__ = ["register"]

DAMAGED = "damaged"
KEY = 32  # characters of a model's fingerprint, with which the keys of its entries begin
NAME = 34  # characters of a model's name that fit beside the rest in 80 columns


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    text = "Show or clear what specx keeps on this machine, and give it texts to draft from."
    group = typer.Typer(help=text, no_args_is_help=True, cls=ListedGroup)
    for command in (show, clear, add, remove):
        group.command()(command)
    app.add_typer(group, name="cache")


def show(
    json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Write the earlier answers that are kept.")] = False,
) -> None:
    """List what is kept: measurements, calibrations, the text of earlier answers (kind: history), added texts
    (kind: corpus)."""
    from specx.backends.places import NO_HOME
    from specx.backends.store import Store, cache_dir
    from specx.cli.terminal.console import notice, write
    from specx.cli.terminal.tables import show_table

    root = cache_dir()
    store = Store(root, notice)
    if text:
        _show_answers(store, json)
        return
    texts = _texts(store)
    entries = store.entries()
    if json:
        record = {
            "directory": root and str(root),
            "entries": [_entry(entry) for entry in entries],
            "texts": [_added(text) for text in texts],
        }
        write(json_module.dumps(record) + "\n")
        return
    if not entries:
        if store.told:  # it cannot be read: who knows what is kept
            return
        write("nothing is kept" + (f": {NO_HOME}\n" if root is None else f" in {root}\n"))
        return
    write(f"{root}: {sum(entry.size for entry in entries):,} bytes\n")
    names = _names(store)
    rows = [
        (e.kind, f"{e.size:,}", _when(e.modified), DAMAGED if e.damaged else "", names.get(e.key[:KEY], ""))
        for e in entries
    ]
    show_table(("kind", "bytes", "last written", "state", "model"), rows)
    if texts:
        lines = [(t.name, f"{t.size:,}", f"{t.tokens:,}", _when(t.added), t.model) for t in texts]
        write("\n")
        show_table(("text", "bytes", "tokens", "added", "model"), lines)
    if any(entry.damaged for entry in entries):
        notice(f"damaged entries are not used; `specx cache clear {DAMAGED}` removes them")


def _names(store: Store) -> dict[str, str]:
    """Names of models by how the keys of their entries begin, as short as fits beside the rest."""
    from specx.engine.learned.answers import TYPED, model_names

    names = {
        key[:KEY]: name if len(name) <= NAME else name[: NAME - 1] + "…"
        for key, name in model_names(store).items()
    }
    return {**names, TYPED: "(what was typed in chats)"}


def _show_answers(store: Store, json: bool) -> None:
    from specx.cli.terminal.console import notice, write
    from specx.engine.learned.answers import kept_answers

    for answers in kept_answers(store):
        if answers.problem:
            notice(f"{answers.model}: {answers.problem}")
        for text in answers.texts:
            if json:
                write(json_module.dumps({"model": answers.model, "text": text}, ensure_ascii=False) + "\n")
            else:
                write(f"--- {answers.model}\n{text.rstrip(chr(10))}\n")


def _texts(store: Store) -> list[CorpusText]:
    """What was added; the module that knows is loaded if there can be anything."""
    if not any(entry.kind == "corpus" for entry in store.entries()):
        return []
    from specx.engine.learned.corpora import all_texts

    return [text for _, text in all_texts(store)]


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "damaged": entry.damaged,
        "bytes": entry.size,
        "modified": entry.modified,
        "path": str(entry.path),
    }


def _added(text: CorpusText) -> dict[str, Any]:
    return {
        "name": text.name,
        "bytes": text.size,
        "tokens": text.tokens,
        "added": text.added,
        "model": text.model,
    }


def _when(modified: float) -> str:
    return datetime.fromtimestamp(modified, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def clear(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="Only this kind of entry, or damaged: what could not be read."),
    ] = None,
) -> None:
    """Remove what is kept."""
    from specx.backends.errors import UsageError
    from specx.backends.places import NO_HOME
    from specx.backends.store import KINDS, Store, cache_dir
    from specx.cli.terminal.console import notice

    kinds = (*KINDS, DAMAGED)
    if kind is not None and kind not in kinds:
        raise UsageError(f"there is no kind {kind!r} of cache entry", f"choose one of {', '.join(kinds)}")
    only_damaged = kind == DAMAGED
    root = cache_dir()
    removed = Store(root, notice).clear(None if only_damaged else kind, only_damaged=only_damaged)
    if root is None:
        notice(f"nothing is kept: {NO_HOME}")
    else:
        notice(f"removed {removed} {'entry' if removed == 1 else 'entries'} from {root}")


def add(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Text in UTF-8, or JSON Lines with text in them.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", metavar="FILE", help="The model that drafts are for: a GGUF file, or its name."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call the text.", show_default="the file's name"),
    ] = None,
) -> None:
    """Index texts that answers will resemble: drafts for the model are searched in them from then on."""
    from specx.backends.hub.models import find_model
    from specx.backends.places import expanded
    from specx.backends.store import Store, cache_dir
    from specx.cli.terminal.console import Progress, notice
    from specx.engine.learned.corpus_files import index_files

    store = Store(cache_dir(), notice)
    paths = [expanded(path) for path in files]
    with Progress("indexing") as progress:
        added = index_files(paths, find_model(model), store, name, progress.update)
    for text in added:
        notice(f"{one_line(text.name)}: {text.tokens:,} tokens, {text.size:,} bytes, for {text.model}")


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `specx cache show` lists it.")],
) -> None:
    """Forget a text that was added, for every model."""
    from specx.backends.errors import UsageError
    from specx.backends.store import Store, cache_dir
    from specx.cli.terminal.console import notice
    from specx.engine.learned.corpora import Corpora, all_texts

    store = Store(cache_dir(), notice)
    known = all_texts(store)
    found = [text for key, text in known if text.name == name and Corpora(store, key).remove(name)]
    if not found:
        names = ", ".join(dict.fromkeys(one_line(text.name) for _, text in known))
        raise UsageError(
            f"no text is called {name!r}", f"there are {names}" if names else "specx cache add FILE adds one"
        )
    for text in found:
        notice(f"removed {one_line(text.name)}: {text.tokens:,} tokens, for {text.model}")
