"""What completes the value of an option when a shell asks."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["model_names", "values"]


def values(*names: str) -> Callable[[str], list[str]]:
    """What completes an option that takes one of some values, or several with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(begun)]

    return complete


def model_names(incomplete: str) -> list[str]:
    """Names of the models on this machine; files are completed by the shell itself."""
    from specx.backends.hub.models import list_models

    return sorted({model.name for model in list_models() if model.name.startswith(incomplete)})
