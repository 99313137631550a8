"""What drafts have brought so far, by drafter: the time that steps took, and what the plan had promised.

The same tokens, decoded one by one, would have taken what the staircase says of single tokens at that depth.
Time outside the model is counted against drafts and not against plain decoding, so the ratio is a little less
than what a stopwatch would say. Old steps fade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from specx.backends.store import Store
from specx.engine.decode import Step

__all__ = ["TrackRecord", "TrackRecords"]

KIND = "record"  # of the entries in the store
MOST_TOKENS = 1 << 16  # a record longer than this is halved: what was long ago counts for less
LEAST, MOST = 1e-9, 1e18  # a kept number beyond was not counted, and cannot be divided by another
MOST_DRAFTERS = 64  # of one model; the shortest records go


@dataclass(slots=True)  # added to at every step
class TrackRecord:
    """Sums over the steps of one drafter.

    Attributes:
        tokens: emitted.
        ms: milliseconds of the steps, drafting and everything else included.
        plain_ms: what as many tokens would have taken one by one.
        promised: tokens that the plan expected.
        promised_ms: milliseconds that it expected.
    """

    tokens: float = 0.0
    ms: float = 0.0
    plain_ms: float = 0.0
    promised: float = 0.0
    promised_ms: float = 0.0

    @property
    def speedup(self) -> float:
        """How many times as fast as plain decoding."""
        return self.plain_ms / self.ms

    @property
    def promised_speedup(self) -> float:
        """The same as the plan expected it."""
        return (self.promised / self.promised_ms) * (self.plain_ms / self.tokens)

    def __add__(self, other: TrackRecord) -> TrackRecord:
        total = TrackRecord(
            self.tokens + other.tokens,
            self.ms + other.ms,
            self.plain_ms + other.plain_ms,
            self.promised + other.promised,
            self.promised_ms + other.promised_ms,
        )
        return total * 0.5 if total.tokens > MOST_TOKENS else total

    def __mul__(self, factor: float) -> TrackRecord:
        return TrackRecord(**{name: value * factor for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrackRecord:
        """What `dataclasses.asdict` gave.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        record = cls(**{field.name: float(data[field.name]) for field in fields(cls)})
        if not all(LEAST < value < MOST for value in asdict(record).values()):
            raise ValueError("a record holds positive numbers that can be divided by each other")
        return record


class TrackRecords:
    """The records of one model on one machine.

    Args:
        store: where they are kept.
        key: what the time of a step depends on.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._new: dict[str, TrackRecord] = {}

    def add(self, drafter: str, step: Step, plain_ms: float) -> None:
        """`drafter` brought `step`, where a single token takes `plain_ms` milliseconds."""
        record = self._new.get(drafter)
        if record is None or record.tokens > MOST_TOKENS:
            record = self._new[drafter] = TrackRecord() if record is None else record * 0.5
        count = len(step.tokens)
        record.tokens += count
        record.ms += max(step.seconds * 1e3, 1e-6)
        record.plain_ms += count * plain_ms
        record.promised += step.promised
        record.promised_ms += max(step.promised_ms, 1e-6)

    def all(self) -> dict[str, TrackRecord]:
        """Every drafter's record, what this process added included."""
        records = self._load()
        for drafter, record in self._new.items():
            records[drafter] = records.get(drafter, TrackRecord()) + record
        return records

    def save(self) -> None:
        """Add what is new to what is kept."""
        if not self._new:
            return
        with self._store.locked():  # another process may have added its own meanwhile
            longest = sorted(self.all().items(), key=lambda item: -item[1].tokens)[:MOST_DRAFTERS]
            kept = {drafter: asdict(record) for drafter, record in longest}
            self._store.save_json(KIND, self._key, {"drafters": kept})
        self._new.clear()

    def _load(self) -> dict[str, TrackRecord]:
        kept = self._store.load_parsed(
            KIND,
            self._key,
            lambda data: {str(name): TrackRecord.from_json(each) for name, each in data["drafters"].items()},
        )
        return kept or {}
