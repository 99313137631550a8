"""The exactness certificate: does speculation change the text of this model on this machine?

The same prompts and seeds are generated with every drafter and compared, token by token, with plain
decoding. Where two texts part, the logits both runs saw at that position are compared: the context is the
same, the rule that picks the token is the same function of the logits and the seed, so the parting is
numerical exactly if the logits differ, and harmless if by no more than the shapes of batches make them
differ. How much that is depends on the context, so the same context is read again, at once and in pieces with
wrong guesses between them, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specx.backends.base import Cache
from specx.backends.errors import UsageError
from specx.engine.decode import Evidence
from specx.engine.generation import Generation
from specx.engine.session import Result, Session
from specx.engine.settings import SamplingSettings

__all__ = [
    "PROMPTS",
    "Comparison",
    "compare_drafters",
    "compare_together",
    "examine",
    "parting",
    "with_longer",
]

PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "List the planets of the solar system with one fact about each, as a Markdown table.",
    "Complete this Python function:\n\ndef is_palindrome(text: str) -> bool:\n",
    "Repeat the following three times: the quick brown fox jumps over the lazy dog.",
    "Translate into French, German and Spanish: Where is the nearest railway station?",
    "A shop sells pens at 3 for 2 euros. How much do 18 pens cost? Think step by step.",
)
TEMPERATURES = (0.0, 0.7, 1.0)
NOISE_FACTOR = 4.0  # of the difference between two runs over the noise; 2.4 was the most seen in 42 partings
AUTO = "auto"
GUESSED = 5  # tokens per call, the wrong guess included


@dataclass(frozen=True, slots=True)
class Comparison:
    """One generation with a drafter against the plain one.

    Attributes:
        prompt: index of the prompt.
        temperature, seed: sampling settings both used.
        drafter: its name, and how many texts were written together if there were several.
        tokens: how many tokens were compared.
        first_difference: index of the first differing token, or None if the texts are identical.
        logit_difference: largest difference of a logit between the two runs there; 0 if identical.
        margin: how far ahead plain decoding's token was there, in units of the tempered logits.
        noise: largest difference of a logit there between plain decoding and reading the same context again.
    """

    prompt: int
    temperature: float
    seed: int
    drafter: str
    tokens: int
    first_difference: int | None = None
    logit_difference: float = 0.0
    margin: float = 0.0
    noise: float = 0.0

    def explained(self, tolerance: float) -> bool:
        """Whether the texts are identical, or part over logits that differ by no more than is natural.

        Natural is `tolerance`, or a few times the noise of this very context. At temperature 0 the lead of
        the plain token must be small enough, too, for two logits to overturn.
        """
        if self.first_difference is None:
            return True
        natural = max(tolerance, NOISE_FACTOR * self.noise) if tolerance > 0 else 0.0
        overturned = self.temperature > 0 or self.margin <= 2 * self.logit_difference
        return 0.0 < self.logit_difference <= natural and overturned


def compare_drafters(
    session: Session,
    prompts: Sequence[Sequence[int]],
    *,
    drafters: Sequence[str] = ("suffix", "recycle", "auto"),
    temperatures: Sequence[float] = TEMPERATURES,
    n_predict: int = 64,
    seed: int = 1,
    done: Callable[[Comparison], None] = lambda _c: None,
) -> list[Comparison]:
    """Generate every prompt at every temperature plainly and with each drafter.

    Args:
        session: its conversation is lost; its drafter is as before afterwards, and what drafters learn from
            these generations (the plain text is history for the others) is forgotten.
        prompts: token ids, at least one token each.
        drafters: names of the drafters to compare with "none".
        temperatures: sampling temperatures; the other settings are the defaults.
        n_predict: tokens of each generation.
        seed: of the first prompt; the others count up.
        done: told of each comparison.
    """
    before = session.drafter_name
    comparisons: list[Comparison] = []
    for index, prompt in enumerate(prompts):
        for temperature in temperatures:
            settings = SamplingSettings(seed=seed + index, temperature=temperature)
            plain = _generate(session, "none", prompt, settings, n_predict)
            for drafter in drafters:
                drafted = _generate(session, drafter, prompt, settings, n_predict)
                comparison = _compare(index, settings, drafter, plain, drafted)
                if comparison.first_difference is not None:
                    noise = _noise(session, prompt, plain, comparison.first_difference)
                    comparison = replace(comparison, noise=noise)
                comparisons.append(comparison)
                done(comparison)
    session.forget_learned()
    session.set_drafter(before)
    return comparisons


def compare_together(
    session: Session,
    prompts: Sequence[Sequence[int]],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    n_predict: int = 64,
    seed: int = 1,
    done: Callable[[Comparison], None] = lambda _c: None,
) -> list[Comparison]:
    """Generate every prompt at every temperature alone and plainly, and all of them together with drafts.

    Together they arrive one after the other while others are written, in another order than they are asked
    in, and are as many at once as there is room for. A prompt is read for one temperature and copied for the
    others. Once prompts are read whole and once in pieces.

    Args:
        session: as of `compare_drafters`; has room for several texts.
        prompts: token ids, at least one token each.
        temperatures, n_predict, seed, done: as of `compare_drafters`.
    """
    before = session.drafter_name
    asked = [
        (i, SamplingSettings(seed=seed + i, temperature=temperature))
        for i in range(len(prompts))
        for temperature in temperatures
    ]
    plain = [_generate(session, "none", prompts[i], settings, n_predict) for i, settings in asked]
    comparisons: list[Comparison] = []
    for patient in (True, False):
        session.set_drafter(AUTO)
        session.forget_conversation()
        made = [
            session.generate(prompts[i], settings, n_predict=n_predict, evidence=True)
            for i, settings in asked
        ]
        label = f"{session.drafter_label}, {min(session.at_once, len(made))} together"
        for _ in session.together(_Staggered(made), patient=patient):
            pass
        for (i, settings), alone, generation in zip(asked, plain, made, strict=True):
            if generation.result.failure is not None:
                raise generation.result.failure
            comparison = _compare(i, settings, label, alone, generation.result)
            if comparison.first_difference is not None:
                noise = _noise(session, prompts[i], alone, comparison.first_difference)
                comparison = replace(comparison, noise=noise)
            comparisons.append(comparison)
            done(comparison)
    session.forget_learned()
    session.set_drafter(before)
    return comparisons


def with_longer(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """`prompts` and others that begin with one of them, as far as they have at most `most` tokens."""
    longer = [[*prompt, *prompts[0]] for prompt in prompts[1:]]
    return [list(prompt) for prompt in (*prompts, *longer) if len(prompt) <= most]


class _Staggered:
    """Hands generations out now and then, in an order of its own. Implements `Arrivals`."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        order = np.random.default_rng(len(generations)).permutation(len(generations))
        self._coming: Iterator[Generation] = iter([generations[i] for i in order.tolist()])
        self._asked = 0

    def take(self, wait: bool) -> Generation | None:
        """The next one, if nobody is written or it is its turn."""
        self._asked += 1
        return next(self._coming, None) if wait or self._asked % 3 == 0 else None


def examine(
    session: Session, prompt: Sequence[int], settings: SamplingSettings, index: int
) -> tuple[float, float, bool]:
    """How firmly plain decoding stands by its token number `index`, counted from 0.

    The session's conversation is lost, and it decodes plainly afterwards.

    Returns:
        The token's lead in units of the tempered logits, how far its logits are from those of reading the
        same context again, and whether noise a few times that size can overturn the lead.

    Raises:
        UsageError: plain decoding ends before that token.
    """
    plain = _generate(session, "none", prompt, settings, index + 1)
    if index >= len(plain.evidence):
        raise UsageError(f"plain decoding ends before token {index}")
    margin = plain.evidence[index].margin
    noise = _noise(session, prompt, plain, index)
    scale = settings.temperature or 1.0
    return margin, noise, noise > 0.0 and margin * scale <= 2 * NOISE_FACTOR * noise


def parting(plain: Result, drafted: Result) -> tuple[int, float, float] | None:
    """Where two results part: (index, largest logit difference there, plain margin there), or None.

    A result that is a prefix of the other parts where it ends.
    """
    if plain.tokens == drafted.tokens:
        return None
    pairs = zip(plain.tokens, drafted.tokens, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(plain.tokens), len(drafted.tokens)))
    if index >= len(plain.evidence) or index >= len(drafted.evidence):
        return index, 0.0, 0.0
    ours, theirs = plain.evidence[index], drafted.evidence[index]
    return index, _logit_difference(ours, theirs), ours.margin


def _compare(
    prompt: int, settings: SamplingSettings, drafter: str, plain: Result, drafted: Result
) -> Comparison:
    found = parting(plain, drafted)
    compared = min(len(plain.tokens), len(drafted.tokens))
    common = (prompt, settings.temperature, plain.seed, drafter, compared)
    return Comparison(*common) if found is None else Comparison(*common, *found)


def _generate(
    session: Session, drafter: str, prompt: Sequence[int], settings: SamplingSettings, n_predict: int
) -> Result:
    session.set_drafter(drafter)
    session.forget_conversation()
    generation = session.generate(prompt, settings, n_predict=n_predict, evidence=True)
    for _ in generation:
        pass
    return generation.result


def _noise(session: Session, prompt: Sequence[int], plain: Result, index: int) -> float:
    """How far plain decoding's logits for token `index` are from those of reading its context again."""
    if index >= len(plain.evidence):
        return 0.0
    *context, last = [*prompt, *plain.tokens[:index]]
    seen, noise = plain.evidence[index], 0.0
    for read in (_read_at_once, _read_with_guesses):
        session.forget_conversation()
        cache = session.cache
        read(cache, context)
        row = cache.forward(np.array([last], np.int32), np.array([-1], np.int32)).logits[0]
        noise = max(noise, float(np.abs(row[seen.ids] - seen.logits).max()))
        cache.keep([0])
    session.forget_conversation()
    return noise


def _read_at_once(cache: Cache, context: Sequence[int]) -> None:
    cache.prefill(context)


def _read_with_guesses(cache: Cache, context: Sequence[int]) -> None:
    """The second half a few tokens at a time, with a wrong guess beside them, or behind without branches."""
    middle = len(context) if cache.max_width < GUESSED else len(context) // 2
    cache.prefill(context[:middle])
    for start in range(middle, len(context), GUESSED - 1):
        path = list(context[start : start + GUESSED - 1])
        n, wrong = len(path), (path[-1] + 1) % cache.model.vocab.size
        if n > 1 and cache.max_leaves > 1:
            tokens, parents, rows = (
                [path[0], wrong, *path[1:]],
                [-1, 0, 0, *range(2, n)],
                [0, *range(2, n + 1)],
            )
        else:
            tokens, parents, rows = [*path, wrong], list(range(-1, n)), list(range(n))
        cache.forward(np.array(tokens, np.int32), np.array(parents, np.int32))
        cache.keep(rows)


def _logit_difference(a: Evidence, b: Evidence) -> float:
    """Largest difference over the tokens that are among the most likely ones in both rows."""
    shared, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
    if not len(shared):
        return float("inf")
    return float(np.abs(a.logits[in_a] - b.logits[in_b]).max())
