"""The drafter that does not draft: plain decoding."""

from __future__ import annotations

from specx.drafters.base import Drafter

__all__ = ["NoDrafter"]


class NoDrafter(Drafter):
    """Proposes nothing, learns nothing, costs nothing. Implements `Drafter`."""

    source_names = ("padding",)  # what the plan fills a batch up with can turn out right
