"""What two vocabularies have in common, in tokens and on a text: `specx drafter inspect`.

Nothing but the vocabularies is loaded. A draft of another vocabulary has to become tokens of the target's:
how often one token becomes one token, how many it takes, and what is lost on the way there and back tell how
well that can go.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from specx.backends.base import Vocab
from specx.backends.errors import ModelError
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.heads import HEADS, head_of
from specx.backends.llama.vocab import load_vocabulary
from specx.drafters.byte_map import Tokens
from specx.engine.bench.suites import load_suite
from specx.engine.report.drafters import Target, Usable
from specx.engine.settings import Asked
from specx.engine.setup.finder import Candidate, Unfit

__all__ = ["Inspection", "Overlap", "inspect_drafter", "measure_overlap", "sample_text"]

PROMPT_CHARACTERS = 400  # of each built-in prompt: a hundred of them, of every kind


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two vocabularies have in common.

    Attributes:
        target_size, draft_size: tokens.
        common: share of the target's tokens with text whose bytes are a token of the other, too.
        sample_tokens: tokens of the sample, by the target.
        one_to_one: share of them that are one token of the other as well, at the same place.
        draft_per_target: tokens of the other for each of the target's.
        lost: share of the target's tokens that do not come back when the sample is put into the other's
            tokens, these into text, and that into the target's.
    """

    target_size: int
    draft_size: int
    common: float
    sample_tokens: int
    one_to_one: float
    draft_per_target: float
    lost: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """One model as a drafter of another.

    Attributes:
        target, draft: their files.
        overlap: of their vocabularies; None for a draft head, which has the target's or cannot draft.
        head: what a draft head reads and scores, in words; empty for a model.
        usable: what is known of it; None if it cannot draft.
        reason: why it cannot.
        known: whether the times of the target's steps were measured.
    """

    target: Path
    draft: Path
    overlap: Overlap | None
    usable: Usable | None
    reason: str | None
    known: bool
    head: str = ""

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "target": str(self.target),
            "draft": str(self.draft),
            "overlap": self.overlap and asdict(self.overlap),
            "head": self.head or None,
            "drafter": self.usable and self.usable.to_json(known=self.known),
            "reason": self.reason,
        }


def inspect_drafter(
    asked: Asked, draft: Path, sample: str, notice: Callable[[str], None] = lambda _text: None
) -> Inspection:
    """How well one model can draft for another, before either is loaded.

    Args:
        asked: the target, and how it is run.
        draft: the other model.
        sample: text that is put into tokens of both.
        notice: told what a person should know.

    Raises:
        DoesNotFitError: there is not enough memory for the target.
        ModelError: one of them cannot be read, or has no vocabulary.
    """
    target = Target(asked, notice)
    other = read_gguf(draft)
    if not other.vocabulary_size:
        raise ModelError(f"{other.path.name} cannot draft: it has no vocabulary", "take a language model")
    overlap, head = None, ""
    if other.architecture in HEADS:
        head = head_of(other).told()
    else:
        with load_vocabulary(target.info.path) as ours, load_vocabulary(other.path) as theirs:
            overlap = measure_overlap(ours, theirs, sample)
    found = target.check(other.path)
    reason = target.info.plain_reason or (found.reason if isinstance(found, Unfit) else None)
    usable = target.usable(found) if isinstance(found, Candidate) and reason is None else None
    return Inspection(target.info.path, other.path, overlap, usable, reason, target.known, head)


def sample_text() -> str:
    """The beginnings of the built-in prompts, a line each."""
    texts = []
    for prompt in load_suite("default"):
        said = " ".join(str(message.get("content", "")) for message in prompt.messages) or prompt.text
        texts.append(" ".join(said.split())[:PROMPT_CHARACTERS])
    return "\n".join(texts)


def measure_overlap(target: Vocab, draft: Vocab, sample: str) -> Overlap:
    """Compare two vocabularies.

    Args:
        target, draft: the vocabularies.
        sample: text, looked at line by line.
    """
    ours, theirs = Tokens(target), Tokens(draft)
    tokens = drafted = same = kept = 0
    for line in sample.splitlines(keepends=True):
        data = line.encode("utf-8", "replace")
        a, b = ours.of(data), theirs.of(data)
        tokens, drafted = tokens + len(a), drafted + len(b)
        rebuilt = theirs.text(b)
        if rebuilt == data:
            same += len(_spans(ours, a) & _spans(theirs, b))
            kept += len(a)
        else:
            kept += _in_common(a, ours.of(rebuilt))
    spoken = sum(1 for token in range(target.size) if ours.pieces.piece(token))
    return Overlap(
        target_size=target.size,
        draft_size=draft.size,
        common=int((ours.pieces.match(theirs.pieces) >= 0).sum()) / max(spoken, 1),
        sample_tokens=tokens,
        one_to_one=same / max(tokens, 1),
        draft_per_target=drafted / max(tokens, 1),
        lost=1 - kept / max(tokens, 1),
    )


def _spans(vocabulary: Tokens, tokens: Sequence[int]) -> set[tuple[int, int]]:
    """Where in a text each token begins and ends, as bytes; one that has no text is nowhere."""
    ends = list(accumulate(len(vocabulary.pieces.piece(token)) for token in tokens))
    return {(start, end) for start, end in pairwise([0, *ends]) if start < end}


def _in_common(before: Sequence[int], after: Sequence[int]) -> int:
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())
