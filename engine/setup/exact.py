"""What `--exact` allows: batch shapes whose logits are bit-identical here."""

from __future__ import annotations

from collections.abc import Callable

from specx.backends.base import Facts
from specx.engine.cost.identity import Identity

__all__ = ["exact_widths"]


def exact_widths(identity: Identity, facts: Facts, notice: Callable[[str], None]) -> frozenset[int] | None:
    """The batch widths that decoding is held to; None if to none.

    Args:
        identity: of the model here.
        facts: of the model.
        notice: told what is not possible.
    """
    if facts.max_texts > 1 and facts.shared:
        notice("exact: one text at a time, for they share a cache, and company changes last bits")
    if identity.exact_trees:
        return None
    widths = ", ".join(map(str, sorted(identity.widths)))
    notice(f"exact: held to chains of the batch widths that are bit-identical here ({widths})")
    return identity.widths
