"""How the answers to a request are sampled, and where they end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from specx.engine.api.fields import Fields
from specx.engine.settings import SamplingSettings

__all__ = ["read_limit", "read_sampling", "read_stop"]

MAX_SINGLE = 3e38  # about the largest number of single precision
MOST_LEFT = 2**31 - 1
LONGEST_STOPS = 10_000  # characters over all stop strings of a request: a state of an automaton for each
MOST_BIASES = 10_000

NUMBERS = (
    ("temperature", 0.0, MAX_SINGLE),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("frequency_penalty", -MAX_SINGLE, MAX_SINGLE),
    ("presence_penalty", -MAX_SINGLE, MAX_SINGLE),
    ("repeat_penalty", 1e-6, MAX_SINGLE),
)


def read_sampling(fields: Fields, defaults: SamplingSettings) -> SamplingSettings:
    """The settings of a request; what it leaves open is as in `defaults`.

    Raises:
        RequestError: one is not a number, or not within its bounds.
    """
    chosen: dict[str, Any] = {}
    for name, low, high in NUMBERS:
        chosen[name] = fields.number(name, low, high)
    if chosen["repeat_penalty"] is None:  # the name that others have for it
        chosen["repeat_penalty"] = fields.number("repetition_penalty", 1e-6, MAX_SINGLE)
    chosen["top_k"] = fields.integer("top_k", -1, MOST_LEFT)
    chosen["repeat_last_n"] = fields.integer("repeat_last_n", -1, MOST_LEFT)
    chosen["logit_bias"] = _biases(fields)
    settings = replace(defaults, **{name: value for name, value in chosen.items() if value is not None})
    seed = fields.integer("seed", -(2**63), 2**64 - 1)
    return settings if seed is None else replace(settings, seed=None if seed == -1 else seed)


def read_limit(fields: Fields, default: int | None) -> int | None:
    """The most tokens of an answer; None for no limit.

    Raises:
        RequestError: a limit is not a number, or negative.
    """
    limits = [
        fields.integer("max_completion_tokens", 0, MOST_LEFT),
        fields.integer("max_tokens", 0, MOST_LEFT),
    ]
    chosen = next((limit for limit in limits if limit is not None), None)
    least = fields.integer("n_predict", -1, MOST_LEFT)  # llama.cpp's name: -1 is no limit
    if chosen is None and least is not None:
        return None if least < 0 else least
    return default if chosen is None else chosen


def read_stop(fields: Fields) -> tuple[str, ...]:
    """The stop strings of a request. Empty ones, which clients send for none, are left out.

    Raises:
        RequestError: one is not a string, or they are too long.
    """
    value = fields.get("stop")
    if value is None or isinstance(value, str):
        stops = [value] if value else []
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        stops = [each for each in value if each]
    else:
        raise fields.wrong("stop", "a string or a list of strings")
    if sum(map(len, stops)) > LONGEST_STOPS:
        raise fields.refuse("stop", f"the stop strings have more than {LONGEST_STOPS} characters in all")
    return tuple(dict.fromkeys(stops))


def _biases(fields: Fields) -> dict[int, float] | None:
    """Token id -> what is added to its logit; in OpenAI's form, or in llama.cpp's: false forbids a token."""
    value = fields.get("logit_bias")
    if value is None:
        return None
    pairs: Iterable[Any]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        pairs = value
    else:
        raise fields.wrong("logit_bias", "an object of token ids and numbers")
    if len(value) > MOST_BIASES:
        raise fields.refuse("logit_bias", f"logit_bias names more than {MOST_BIASES} tokens")
    return {_token(fields, token): _bias(fields, bias) for token, bias in pairs}


def _token(fields: Fields, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_LEFT:
        return value
    raise fields.refuse("logit_bias", f"logit_bias names {str(value)[:40]!r}, which is no token id")


def _bias(fields: Fields, value: Any) -> float:
    if value is False:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_SINGLE:
        raise fields.refuse("logit_bias", "a value of logit_bias is no number, or beyond all bounds")
    return float(value)
