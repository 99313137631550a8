"""How often some of a model's layers alone choose what all of them do: counted on text, and kept.

What is compared is the most likely token after every token of an answer that the whole model wrote, each time
after what was written before it: one pass over the texts tells it for one choice of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specx.backends.llama.skipping import SkippingModel
from specx.backends.store import Store
from specx.engine.making.samples import Sample

__all__ = ["Trials"]

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and an answer to it."""

KIND = "shrink"  # of the entries in the store
WHOLE: frozenset[int] = frozenset()
PARTS = 3  # one of so many is read to rank what could be left out: what is left out is then tried on all


class Trials:
    """What was found out about the layers of a model.

    Args:
        store: where it is kept, after every trial.
        key: what it depends on: the model, and how its layers are quantized.
        resume: whether to begin with what is kept.

    Attributes:
        texts: what the model wrote, after what.
        chosen: by text, the most likely token after each token of it, from the answer's first one on.
        right: by the layers that were left out, how many of these tokens the others chose in each text, as
            far as they were tried.
    """

    def __init__(self, store: Store, key: str, *, resume: bool) -> None:
        self._store = store
        self._key = key
        self.texts: list[Text] = []
        self.chosen: list[list[int]] = []
        self.right: dict[str, list[int]] = {}
        if resume:
            self._store.load_parsed(KIND, self._key, self._load)

    @property
    def scored(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.chosen))

    def begin(self, texts: Sequence[Sample], whole: SkippingModel) -> None:
        """Start afresh.

        Args:
            texts: what the model wrote.
            whole: the model.
        """
        mixed = [text for start in range(PARTS) for text in texts[start::PARTS]]
        self.texts, self.right = [(text.prompt, text.answer) for text in mixed], {}
        self.chosen = [predicted(whole, text, WHOLE) for text in self.texts]
        self._save()

    def is_known(self, dropped: frozenset[int], *, ranking: bool = False) -> bool:
        """Whether it is known how the others do without these layers, on all texts or for a ranking."""
        return len(self.right.get(_name(dropped), ())) >= self._needed(ranking=ranking)

    def agreement(self, model: SkippingModel, dropped: frozenset[int], *, ranking: bool = False) -> float:
        """Share of the tokens that are the same without some layers.

        Args:
            model: the model as its layers are quantized.
            dropped: layers that are left out.
            ranking: only on a part of the texts, enough to tell which of two choices is better.
        """
        needed = self._needed(ranking=ranking)
        counts = self.right.setdefault(_name(dropped), [])
        for text, chosen in list(zip(self.texts, self.chosen, strict=True))[len(counts) : needed]:
            same = zip(predicted(model, text, dropped), chosen, strict=True)
            counts.append(sum(a == b for a, b in same))
            self._save()
        return sum(counts[:needed]) / max(sum(map(len, self.chosen[:needed])), 1)

    def _needed(self, *, ranking: bool) -> int:
        return -(-len(self.texts) // PARTS) if ranking else len(self.texts)

    def _save(self) -> None:
        texts = [[list(prompt), list(answer)] for prompt, answer in self.texts]
        self._store.save_json(KIND, self._key, {"texts": texts, "chosen": self.chosen, "right": self.right})

    def _load(self, data: Mapping[str, Any]) -> None:
        texts = [(tuple(map(int, p)), tuple(map(int, a))) for p, a in data["texts"]]
        chosen = [list(map(int, tokens)) for tokens in data["chosen"]]
        right = {str(name): list(map(int, counts)) for name, counts in data["right"].items()}
        if [len(answer) for _, answer in texts] != list(map(len, chosen)):
            raise ValueError("texts and choices do not fit each other")
        self.texts, self.chosen, self.right = texts, chosen, right


def predicted(model: SkippingModel, text: Text, dropped: frozenset[int]) -> list[int]:
    """The most likely token in place of each token of the answer."""
    prompt, answer = text
    found = model.predictions([*prompt, *answer[:-1]], dropped)[len(prompt) - 1 :]
    return list(map(int, found))


def _name(dropped: frozenset[int]) -> str:
    return ",".join(map(str, sorted(dropped)))
