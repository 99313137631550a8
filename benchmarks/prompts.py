"""Prompts for measurement: JSON lines with an `id`, a `category`, and `turns` or `messages`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Prompt", "read_prompts", "sample"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to answer.

    Attributes:
        id: name of the prompt, unique among all files.
        category: what kind of text it asks for.
        turns: the user's turns, answered one after the other.
        messages: a conversation so far, ready to be answered, in place of turns.
        tools: JSON schemas of the functions that the conversation may call.
    """

    id: str
    category: str
    turns: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = field(default=())

    @property
    def n_turns(self) -> int:
        """How many answers the conversation asks for."""
        return len(self.turns) or 1

    def conversation(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """The messages that come before answer number `len(answers)`, given the answers so far."""
        if not self.turns:
            return list(self.messages)
        messages: list[dict[str, Any]] = []
        for turn, answer in zip(self.turns, [*answers, None], strict=False):
            messages.append({"role": "user", "content": turn})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return messages


def read_prompts(paths: Iterable[Path], *, max_turns: int) -> list[Prompt]:
    """All prompts of some JSONL files, cut to `max_turns` turns.

    Raises:
        ValueError: a line is no prompt, or an id occurs twice.
    """
    prompts: dict[str, Prompt] = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                prompt = _parse(json.loads(line), max_turns)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number} is no prompt: {error!r}") from None
            if prompts.setdefault(prompt.id, prompt) is not prompt:
                raise ValueError(f"{path}:{number}: the id {prompt.id} occurs twice")
    return list(prompts.values())


def sample(prompts: Iterable[Prompt], per_category: int | None, seed: int) -> list[Prompt]:
    """At most `per_category` prompts of each category.

    Which ones depends on the seed and their ids only, so more prompts per category keep those of fewer.
    """
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)

    def order(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()

    return [p for group in by_category.values() for p in sorted(group, key=order)[:per_category]]


def _parse(row: dict[str, Any], max_turns: int) -> Prompt:
    name, category = str(row["id"]), str(row["category"])
    turns = tuple(map(str, row.get("turns", ())))[:max_turns]
    messages = tuple(row.get("messages", ()))
    if bool(turns) == bool(messages):
        raise ValueError("give either turns or messages")
    return Prompt(name, category, turns, messages, tuple(row.get("tools") or ()))
