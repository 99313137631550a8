"""What would make a model faster here, computed by the objective: how much, and what to type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from specx.backends.gguf.file import GGUFInfo
from specx.engine.cost.rate import ACCEPTANCE, chain_rate
from specx.engine.cost.staircase import Staircase

__all__ = ["Advice", "Sibling", "draft_advice", "kernels_advice", "sibling_of"]

LEAST = 1.05  # times as fast: what brings less is not worth a line
SHARE = 1 / 8  # of the target's size: a draft model that is easy to come by in most families
MOST_SHARE = 1 / 2  # of the target's: a sibling of nearly its size is not worth fetching


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing a person can do.

    Attributes:
        text: what, one clause, with its numbers.
        factor: how many times as fast it would be; 1 for what saves memory.
        command: what to type; may be empty.
    """

    text: str
    factor: float
    command: str = ""


@dataclass(frozen=True, slots=True)
class Sibling:
    """The smallest model of a family whose members share a vocabulary.

    Attributes:
        name: of the model.
        parameters: how many it has.
        repository: where its GGUF files are.
    """

    name: str
    parameters: float
    repository: str


FAMILIES: tuple[tuple[str, str, range, Sibling], ...] = (
    (
        "llama",
        r"smollm2",
        range(49_152, 49_153),
        Sibling("SmolLM2 135M", 0.135e9, "bartowski/SmolLM2-135M-Instruct-GGUF"),
    ),
    (
        "llama",
        r"llama[- _]?3",
        range(128_256, 128_257),
        Sibling("Llama 3.2 1B", 1.24e9, "bartowski/Llama-3.2-1B-Instruct-GGUF"),
    ),
    (
        "qwen2",
        r"qwen[- _]?2\.5",
        range(151_643, 152_065),
        Sibling("Qwen2.5 0.5B", 0.49e9, "Qwen/Qwen2.5-0.5B-Instruct-GGUF"),
    ),
    (
        "qwen3|qwen3moe",
        r"qwen[- _]?3(?!\.)",
        range(151_643, 151_937),
        Sibling("Qwen3 0.6B", 0.6e9, "Qwen/Qwen3-0.6B-GGUF"),
    ),
    (
        "gemma3",
        r"gemma[- _]?3(?!n)",
        range(262_144, 262_209),
        Sibling("Gemma 3 1B", 1.0e9, "ggml-org/gemma-3-1b-it-GGUF"),
    ),
)
"""Architectures, what the name contains, sizes of the vocabulary, and the sibling."""


def sibling_of(info: GGUFInfo) -> Sibling | None:
    """The smallest model of the family of `info`, if that is certain and much smaller."""
    for architectures, named, vocabulary, sibling in FAMILIES:
        if (
            info.architecture in architectures.split("|")
            and info.vocabulary_size in vocabulary
            and re.search(named, f"{info.name} {info.path.stem}", re.IGNORECASE)
            and sibling.parameters <= MOST_SHARE * info.parameters
        ):
            return sibling
    return None


def draft_advice(info: GGUFInfo, staircase: Staircase, best: float) -> Advice | None:
    """A draft model, if a small one would beat the `best` rate there is, in times plain decoding."""
    costs = staircase.costs(0)
    sibling = sibling_of(info)
    share = sibling.parameters / info.parameters if sibling else SHARE
    factor = chain_rate(costs, draft_ms=float(costs[1]) * share).rate * float(costs[1])
    if factor < LEAST * best:
        return None
    right = f"if {ACCEPTANCE:.0%} of its tokens are right"
    if sibling:
        text = f"{sibling.name} as a draft model would give about {factor:.1f}x plain decoding, {right}"
        return Advice(text, factor / best, f"specx pull {sibling.repository}")
    text = f"a draft model of this vocabulary with 1/8 of the size would give about {factor:.1f}x, {right}"
    return Advice(text, factor / best)


def kernels_advice(used: str, steps: Mapping[str, Mapping[int, float]]) -> Advice | None:
    """Other kernels, if they were measured to be faster than those `used`.

    Args:
        used: name of the kernels in use.
        steps: milliseconds by tokens of a step, by name of the kernels; those that were measured.
    """
    if used not in steps:
        return None
    rates = {name: chain_rate(ms).rate for name, ms in steps.items()}
    best = max(rates, key=lambda name: rates[name])
    factor = rates[best] / rates[used]
    if factor < LEAST:
        return None
    return Advice(f"the kernels {best!r} were measured to be faster", factor, f"--kernels {best}")
