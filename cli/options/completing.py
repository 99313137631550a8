"""What completes the value of an option or an argument when a shell asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["values_of"]


def values_of(parameter: Any, command: str, incomplete: str) -> list[str]:
    """What may stand for a parameter, as far as that can be known; files are completed by the shell itself.

    Args:
        parameter: of click's.
        command: the words of the command before it, such as "specx cache clear".
        incomplete: what is typed of it; where there may be several with commas, all of them.
    """
    before, comma, begun = incomplete.rpartition(",")
    return [f"{before}{comma}{value}" for value in _values(parameter, command) if value.startswith(begun)]


def _values(parameter: Any, command: str) -> Iterable[str]:
    metavar = parameter.metavar or ""
    for name in (*parameter.opts, f"{command} {metavar}", metavar):
        if name in SOURCES:
            return SOURCES[name]()
    return [value for value in metavar.split("|") if value.islower()] if "|" in metavar else ()


def _cache_types() -> Iterable[str]:
    from specx.backends.settings import CACHE_TYPES

    return CACHE_TYPES


def _drafters() -> Iterable[str]:
    from specx.cli.options.groups import DRAFTERS

    return DRAFTERS


def _kernels() -> Iterable[str]:
    from specx.cli.options.groups import KERNELS

    return KERNELS


def _models() -> list[str]:
    """Aliases, and names of the models on this machine."""
    from specx.backends.hub.models import list_models
    from specx.backends.places import model_aliases

    _read_configuration()
    return sorted({*model_aliases, *(model.name for model in list_models())})


def _profiles() -> list[str]:
    from specx.cli.options.config import profile_names

    return profile_names()


def _read_configuration() -> None:
    from specx.cli.options.config import config_path, know_models

    if (path := config_path()) is not None:
        know_models(path)


def _kinds() -> Iterable[str]:
    from specx.backends.store import KINDS

    return (*KINDS, "damaged")


def _texts() -> list[str]:
    from specx.backends.store import Store, cache_dir
    from specx.engine.learned.corpora import all_texts

    return sorted({text.name for _, text in all_texts(Store(cache_dir(), lambda _text: None))})


def _suites() -> Iterable[str]:
    from specx.engine.bench.suites import suite_names

    return suite_names()


SOURCES: dict[str, Callable[[], Iterable[str]]] = {
    **dict.fromkeys(("--cache-type-k", "--cache-type-v"), _cache_types),
    **dict.fromkeys(("--cache-type-k-draft", "--cache-type-v-draft"), _cache_types),
    **dict.fromkeys(("--model", "--model-draft", "--for", "MODEL", "[MODEL]", "TARGET", "DRAFT"), _models),
    "--drafter": _drafters,
    "--kernels": _kernels,
    "--profile": _profiles,
    "--suite": _suites,
    "specx cache clear KIND": _kinds,
    "specx cache remove NAME": _texts,
}
"""By the name of an option, a command and what its help calls an argument, or that alone."""
