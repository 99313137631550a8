"""Looking through an input before a model is loaded: how many items, which are the largest, what is wrong."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from specx.backends.errors import UsageError
from specx.engine.batch.items import DUPLICATE, Item
from specx.engine.batch.resume import Skipper

__all__ = ["DEFAULT_LIMIT", "Survey", "context_for", "survey"]

DEFAULT_LIMIT = 1024
"""Most tokens of an answer where neither the item nor the person says: a model that does not come to an end
would hold up all others, and hardly any answer is as long."""

LARGEST = 8  # items whose tokens are counted
BYTES_PER_TOKEN = 3  # fewer than nearly all text has: only the order of items follows from it
PER_MESSAGE, PER_PROMPT = 16, 256  # tokens that a chat template adds: around a message, and in all
STEP = 256  # tokens of context, to which llama.cpp rounds up
LEAST, MOST_UNCOUNTED = 512, 2048


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in an input.

    Attributes:
        items: how many there are.
        answered: how many of them the output has already.
        largest: those that may need most context.
    """

    items: int
    answered: int
    largest: tuple[Item, ...]


def survey(items: Iterable[Item], skipper: Skipper | None, limit: int) -> Survey:
    """Look through all items.

    Args:
        items: of the input.
        skipper: knows what is answered.
        limit: most tokens of an answer where the item does not say.

    Raises:
        UsageError: two items have one `custom_id`, or the input is not the one that was answered.
    """
    total = 0
    largest: list[tuple[float, int, Item]] = []
    order = count()
    for item in items:
        total += 1
        if item.problem is not None and item.problem[1] == DUPLICATE:
            raise UsageError(item.problem[0], "give each request a custom_id of its own")
        if (skipper is not None and skipper.skip(item)) or item.body is None:
            continue
        size = sum(map(len, _texts(item.body))) / BYTES_PER_TOKEN + _limit(item.body, limit)
        entry = (size, next(order), item)
        if len(largest) < LARGEST:
            heapq.heappush(largest, entry)
        elif size > largest[0][0]:
            heapq.heapreplace(largest, entry)
    if skipper is not None:
        skipper.check_end()
    answered = 0 if skipper is None else skipper.skipped
    return Survey(total, answered, tuple(item for _, _, item in sorted(largest, key=lambda e: -e[0])))


def context_for(largest: Iterable[Item], model: Path, limit: int) -> int:
    """Tokens of context that the largest items need: the prompt, what a template may add, and the answer.

    Args:
        largest: the items.
        model: the GGUF file, whose vocabulary counts the tokens.
        limit: as of `survey`; negative where answers have no limit.
    """
    items = [item for item in largest if item.body is not None]
    # A token is at least a byte, so short prompts need not be counted.
    most = max((_need(item, _bytes, limit) for item in items), default=0)
    if most > MOST_UNCOUNTED:
        from specx.backends.llama.vocab import load_vocabulary

        with load_vocabulary(model) as vocab:

            def tokens(text: str) -> int:
                data = text.encode(errors="replace")
                return len(vocab.tokenize(data, add_special=False, parse_special=True))

            most = max(_need(item, tokens, limit) for item in items)
    return -(-max(most, LEAST) // STEP) * STEP


def _need(item: Item, tokens: Callable[[str], int], limit: int) -> int:
    body = item.body
    ids: int = sum(_ids(body.get("prompt")))
    messages = body.get("messages")
    extra = PER_PROMPT + PER_MESSAGE * len(messages) if isinstance(messages, list) else STEP // 4
    return ids + sum(tokens(text) for text in _texts(body)) + extra + _limit(body, limit)


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """What of a request the model reads, for one answer: of several prompts the longest."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list):
        yield max((each for each in prompt if isinstance(each, str)), key=len, default="")
    for name in ("messages", "tools", "functions", "response_format"):
        yield from _strings(body.get(name))


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, names of fields included."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left.extend(value)
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)


def _ids(prompt: Any) -> Iterator[int]:
    """How many token ids a prompt has, if it has ids: of several the most."""
    if not isinstance(prompt, list):
        return
    if prompt and all(isinstance(each, int) for each in prompt):
        yield len(prompt)
    else:
        yield max((len(each) for each in prompt if isinstance(each, list)), default=0)


def _limit(body: Mapping[str, Any], limit: int) -> int:
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return limit if limit >= 0 else DEFAULT_LIMIT * 4
