"""Prompts that a model is asked while it writes what a head is trained on: of many kinds, ever new ones.

A form is a prompt with gaps. What fills them are words of a list, the answer to an earlier prompt, a sentence
or a program of one, or a question that the model made up: so there are documents to read, code to edit and
tables to query without anybody's texts. Kinds are drawn with equal shares.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Forms"]

FORMS = Path(__file__).with_name("forms.txt")
TRIES = 40  # answers that are looked at for a program or a sentence, and forms that are tried
LENGTHS = (300, 600, 1000, 1500)  # characters of a passage, at most
PROGRAM = re.compile(r"```\w*\n(.+?)(?:```|\Z)", re.DOTALL)
LEAST_PROGRAM, MOST_PROGRAM = 40, 900  # characters
SENTENCE = re.compile(r"[A-Z][^.!?\n]{20,160}[.!?]")
GAP = re.compile(r"{(\w+)}")


class _MissingError(Exception):
    """Nothing was written yet that fills a gap."""


class Forms:
    """The built-in forms."""

    def __init__(self) -> None:
        self._words: dict[str, list[str]] = {}
        self._forms: dict[str, list[str]] = defaultdict(list)
        for line in FORMS.read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                continue
            name, sign, rest = re.split(r"(: | = )", line, maxsplit=1)
            if sign == " = ":
                self._words[name] = rest.split(" | ")
            else:
                self._forms[name].append(rest.replace("\\n", "\n"))
        self._kinds = list(self._forms)

    def ask(self, answers: Sequence[str], questions: Sequence[str], chance: random.Random) -> str:
        """A prompt.

        Args:
            answers: texts that were written before.
            questions: that the model made up.
            chance: decides everything.
        """
        found: dict[str, Callable[[], str]] = {
            "passage": lambda: _passage(answers, chance),
            "sentence": lambda: _match(SENTENCE, answers, chance),
            "code": lambda: _program(answers, chance),
            "question": lambda: _one(questions, chance),
        }

        def filled(gap: re.Match[str]) -> str:
            name = gap[1]
            return found[name]() if name in found else chance.choice(self._words[name])

        while True:
            form = chance.choice(self._forms[chance.choice(self._kinds)])
            try:
                return GAP.sub(filled, form)
            except _MissingError:
                continue  # of every kind but a few there are forms that need nothing


def _one(texts: Sequence[str], chance: random.Random) -> str:
    if not texts:
        raise _MissingError
    return chance.choice(texts)


def _passage(answers: Sequence[str], chance: random.Random) -> str:
    """The beginning of an answer, up to the end of a sentence where it is cut off."""
    whole, most = _one(answers, chance).strip(), chance.choice(LENGTHS)
    text = whole[:most]
    end = max(text.rfind(". "), text.rfind(".\n"))
    return text if len(whole) <= most or end < 0 else text[: end + 1]


def _match(pattern: re.Pattern[str], answers: Sequence[str], chance: random.Random) -> str:
    """The first match in some answer that has one."""
    for _ in range(TRIES):
        if match := pattern.search(_one(answers, chance)):
            return match[match.re.groups]
    raise _MissingError


def _program(answers: Sequence[str], chance: random.Random) -> str:
    """A program that was written before, between fences."""
    text = _match(PROGRAM, answers, chance)[:MOST_PROGRAM].rstrip()
    if len(text) < LEAST_PROGRAM:
        raise _MissingError
    return f"```\n{text}\n```"
