"""What a step takes at least: the time to read its bytes, and the time to do its multiplications.

The roofline of Williams, Waterman and Patterson (2009), with the bandwidth and the peak that this machine
reaches in a loop that does nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.memory import cache_bytes
from specx.backends.settings import Load
from specx.engine.setup.layers import step_bytes, step_products

__all__ = ["Bound", "Roofline", "roofline_of"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The least milliseconds of a step.

    Attributes:
        reading: its weights and the cache before it, once, from memory.
        computing: its multiplications; None where nobody knows how fast these are here.
    """

    reading: float
    computing: float | None

    @property
    def ms(self) -> float:
        """The larger of the two."""
        return max(self.reading, self.computing or 0.0)

    def to_json(self) -> dict[str, Any]:
        """A plain value."""
        return {"reading_ms": self.reading, "computing_ms": self.computing, "ms": self.ms}


@dataclass(frozen=True, slots=True)
class Roofline:
    """What steps of a model take at least on this machine.

    Attributes:
        products: weights that each token is multiplied with.
        instructions: the instruction set that multiplies; empty where it is not known.
        peak: operations a second, multiplications and additions, on as many threads as a step has; 0 where it
            was not measured.
        bounds: by depth and width.
    """

    products: int
    instructions: str
    peak: float
    bounds: Mapping[int, Mapping[int, Bound]]

    def to_json(self) -> dict[str, Any]:
        """A plain value, but for the bounds."""
        return {
            "products_per_token": self.products,
            "instructions": self.instructions,
            "integer_operations_per_s": round(self.peak),
        }


def roofline_of(
    info: GGUFInfo,
    load: Load,
    *,
    depths: Iterable[int],
    widths: Iterable[int],
    bandwidth: float,
    peak: float,
    instructions: str,
) -> Roofline:
    """The bounds of a model's steps.

    Attention counts with what it reads; what it computes is a small part, in floating point.

    Args:
        info: the model.
        load: how it is loaded.
        depths: tokens of context.
        widths: tokens of a step.
        bandwidth: bytes a second that memory gives.
        peak: operations a second on integers; 0 where that is not known.
        instructions: what they are done with.
    """
    products = step_products(info)
    cached = sum(cache_bytes(info, load)) / load.n_ctx / max(load.texts, 1)  # of a token

    def bound(depth: int, n: int) -> Bound:
        reading = (step_bytes(info, n) + cached * depth) / bandwidth * 1e3
        return Bound(reading, 2 * products * n / peak * 1e3 if peak else None)

    return Roofline(
        products, instructions, peak, {depth: {n: bound(depth, n) for n in widths} for depth in depths}
    )
