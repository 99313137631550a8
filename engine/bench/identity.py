"""Does every arm say what its plain arm says? And where it does not, by how little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from specx.backends.errors import SpecxError
from specx.engine.bench.cases import Case
from specx.engine.bench.records import Answer, ArmInfo, Parting
from specx.engine.report.certificate import examine
from specx.engine.session import Session
from specx.engine.settings import SamplingSettings

__all__ = ["compared", "explain_partings", "find_partings"]


def find_partings(answers: Sequence[Answer], arms: Sequence[ArmInfo]) -> list[Parting]:
    """Every answer whose tokens are not those of its plain arm's first answer to the same prompt."""
    partings = []
    for answer, expected in _pairs(answers, arms):
        if answer.tokens != expected.tokens:
            index = _first_difference(expected.tokens, answer.tokens)
            partings.append(Parting(case=answer.case, arm=answer.arm, round=answer.round, index=index))
    return partings


def compared(answers: Sequence[Answer], arms: Sequence[ArmInfo]) -> Counter[str]:
    """Arm -> how many of its answers can be compared with its plain arm's first one."""
    return Counter(answer.arm for answer, _ in _pairs(answers, arms))


def explain_partings(
    partings: Sequence[Parting],
    sessions: Mapping[str, Session],
    cases: Mapping[str, Case],
    sampling: SamplingSettings,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Parting]:
    """The same, with the margin and the noise where plain decoding can be asked again.

    Args:
        partings: what `find_partings` found.
        sessions: arm -> the session it answered with; peers have none.
        cases: what was asked, by id.
        sampling: how tokens were chosen.
        progress: told how many are done, of how many.
    """
    seen: dict[tuple[Session, str, int], tuple[float, float, bool]] = {}
    explained = []
    for done, parting in enumerate(partings):
        progress(done, len(partings))
        session, case = sessions.get(parting.arm), cases.get(parting.case)
        if session is None or case is None:
            explained.append(parting)
            continue
        key = (session, parting.case, parting.index)
        try:
            if key not in seen:
                seen[key] = examine(session, case.tokens, sampling, parting.index)
        except SpecxError:  # plain decoding has no token there: one answer is the beginning of the other
            explained.append(parting)
            continue
        margin, noise, near_tie = seen[key]
        explained.append(replace(parting, margin=margin, noise=noise, near_tie=near_tie))
    return explained


def _pairs(answers: Sequence[Answer], arms: Sequence[ArmInfo]) -> Iterator[tuple[Answer, Answer]]:
    """Answers, each with what plain decoding said first, where it was asked the same."""
    plain = {arm.name: arm.plain for arm in arms}
    first: dict[tuple[str, str, str], Answer] = {}
    for answer in answers:
        first.setdefault((answer.case, answer.prompt, answer.arm), answer)
    for answer in answers:
        expected = first.get((answer.case, answer.prompt, plain[answer.arm]))
        if expected is not None and expected is not answer:
            yield answer, expected


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Where two different texts part; a text that is the beginning of the other parts where it ends."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
