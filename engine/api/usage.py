"""What a response says of tokens and times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specx.engine.session import Generation

__all__ = ["cached_tokens", "timings_of", "usage_of"]


def cached_tokens(generation: Generation) -> int:
    """Tokens of the prompt that were not read again, as they were in a cache."""
    return generation.result.timings.cached_n


def usage_of(generations: Sequence[Generation], n: int) -> dict[str, Any]:
    """Tokens of a request: each prompt counts once, and all of its `n` answers do."""
    first = generations[::n]
    prompt = sum(len(generation.request.prompt) for generation in first)
    completion = sum(len(generation.result.tokens) for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(map(cached_tokens, first))},
    }


def timings_of(generations: Sequence[Generation]) -> dict[str, Any]:
    """Counts and times by the names of llama.cpp's server; those of several answers are added up."""
    each = [generation.result.timings for generation in generations]
    prompt_n, prompt_ms = sum(t.prompt_n for t in each), sum(t.prompt_ms for t in each)
    predicted_n, predicted_ms = sum(t.predicted_n for t in each), sum(t.predicted_ms for t in each)
    return {
        "cache_n": sum(map(cached_tokens, generations)),
        **_times("prompt", prompt_n, prompt_ms),
        **_times("predicted", predicted_n, predicted_ms),
        "draft_n": sum(t.draft_n for t in each),
        "draft_n_accepted": sum(t.draft_n_accepted for t in each),
    }


def _times(name: str, count: int, ms: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / max(count, 1), 3),
        f"{name}_per_second": round(count / ms * 1e3, 3) if ms > 0 else 0.0,
    }
