"""What is learned of a model and kept between runs.

Costs of steps depend on the machine, the build and the settings; calibrations and caches on the model
alone. What drafters learn is loaded with the session and saved once, when it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab
from specx.backends.store import Store
from specx.drafters.base import Drafter
from specx.drafters.calibration.free import Calibration
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.forced import ForcedDrafter
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.engine.cost.identity import Identity
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import unwatched
from specx.engine.learned.corpora import Corpora
from specx.engine.learned.lengths import Lengths
from specx.engine.learned.records import TrackRecords
from specx.engine.setup import keys

__all__ = ["Learned", "StartingPoint", "keep_staircase", "kept_identity", "kept_staircase"]

HISTORY_TOKENS = 1 << 16  # of earlier answers; an automaton over them is built in some 20 ms
SEPARATOR = -1  # no match spans it
NO_TOKENS: NDArray[np.int32] = np.empty(0, np.int32)


def kept_staircase(store: Store, key: str, staircase: Staircase) -> Staircase:
    """`staircase` with what is kept of steps under `key`, if anything."""
    store.load_parsed(
        "staircase", key, lambda data: staircase.load_kept(data["steps"], data.get("disturbed"))
    )
    if not staircase.depths:
        staircase.like = _with_other_threads(store, key, staircase.max_width)
    return staircase


def _with_other_threads(store: Store, key: str, max_width: int) -> Staircase | None:
    """What is kept of steps with another number of threads, if anything."""
    common = keys.any_threads(key)
    other = None if common is None else (store.load_json("staircase", common) or {}).get("latest")
    if not isinstance(other, str) or other == key:
        return None
    like = Staircase(max_width, watch=unwatched)
    store.load_parsed("staircase", other, lambda data: like.load_kept(data["steps"]))
    return like if like.depths else None


def keep_staircase(store: Store, key: str, staircase: Staircase) -> None:
    """Keep what was measured, beside what runs that allow wider steps have kept; what is wrong goes.

    What was disturbed is kept apart, as long as there is nothing else.
    """
    steps, disturbed = staircase.to_json(), staircase.disturbed_json()
    if not steps and not disturbed and not staircase.contradicted:
        return
    with store.locked():
        kept = store.load_json("staircase", key) or {}
        with suppress(ValueError, TypeError, AttributeError):  # something else, which goes
            steps = staircase.with_wider(steps, kept.get("steps", {}))
        if not steps and disturbed and kept.get("steps") and not staircase.contradicted:
            return
        apart = {} if steps or not disturbed else {"disturbed": disturbed}
        store.save_json("staircase", key, {"steps": steps, **apart})
        if steps and (common := keys.any_threads(key)) is not None:
            store.save_json("staircase", common, {"latest": key})


def kept_identity(store: Store, key: str) -> Identity | None:
    """Which batch shapes are bit-identical, if that is kept under `key`."""
    return store.load_parsed("identity", key, Identity.from_json)


class Learned:
    """The kept knowledge of one model.

    Args:
        store: where it is kept.
        model_key: what calibrations and caches depend on.
        cost_key: what the time and the bits of a step depend on.
        corpora: texts that were added for the model; by default those of the store.
        origin: the model's name and its file, to tell a person what entries are about.
    """

    def __init__(
        self,
        store: Store,
        *,
        model_key: str,
        cost_key: str,
        corpora: Corpora | None = None,
        origin: tuple[str, Path] | None = None,
    ) -> None:
        self._origin = origin
        self._store = store
        self._model_key = model_key
        self._cost_key = cost_key
        self.records = TrackRecords(store, cost_key)
        self._identity: Identity | None = None
        self._drafter: FreeDrafter | None = None
        self._calibration = Calibration()
        self._history = self._added = NO_TOKENS  # of before, and since the store was read
        self._rows: dict[str, NDArray[Any]] | None = None
        self._pairs: dict[str, tuple[dict[str, NDArray[Any]] | None, dict[str, Any]]] = {}  # read so far
        self.corpora = corpora or Corpora(store, model_key)
        self._drafted = False  # whether anything was drafted, so that there is more to keep than was read
        self.forget()

    def load_staircase(self, staircase: Staircase) -> Staircase:
        """`staircase` with what was measured before, if anything."""
        return kept_staircase(self._store, self._cost_key, staircase)

    @contextmanager
    def measuring(
        self, staircase: Staircase, waiting: Callable[[], None], stopped: Callable[[], bool]
    ) -> Iterator[None]:
        """Keep other processes from measuring; what one has found meanwhile is taken over.

        Args:
            staircase: of which a part is to be measured.
            waiting: called once if another process measures now.
            stopped: whether to wait no longer.
        """
        with self._store.measuring(waiting, stopped) as waited:
            if waited and not staircase.depths:
                self.load_staircase(staircase)
            yield

    def save_staircase(self, staircase: Staircase) -> None:
        """Keep what was measured."""
        keep_staircase(self._store, self._cost_key, staircase)

    def load_identity(self) -> Identity | None:
        """Which batch shapes are bit-identical, if that was measured before."""
        return self._identity or kept_identity(self._store, self._cost_key)

    def save_identity(self, identity: Identity) -> None:
        """Keep which batch shapes are bit-identical."""
        self._identity = identity
        self._store.save_json("identity", self._cost_key, identity.to_json())

    def load_pair(self, draft: str) -> tuple[ModelCalibration, GuessCosts | None]:
        """What is kept of the draft model with the fingerprint `draft`: how often it is right about this
        model, and what its work costs here."""
        key = self._pair_key(draft)
        calibration, costs = ModelCalibration(), None
        if key not in self._pairs:  # asked for again and again where one is chosen among several
            arrays, costs_of = self._store.load_arrays("pairs", key), self._store.load_json("pairs", key)
            self._pairs[key] = arrays, costs_of or {}
        arrays, costs_of = self._pairs[key]
        try:
            if arrays:
                calibration = ModelCalibration.from_arrays(arrays)
            data = costs_of.get(self._cost_key)
            if data is not None:
                costs = GuessCosts.from_json(data)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            self._store.set_aside("pairs", key)
            self._pairs[key] = None, {}
            return ModelCalibration(), None
        return calibration, costs

    def save_pair(self, draft: str, calibration: ModelCalibration, costs: GuessCosts) -> None:
        """Keep what was learned of a draft model."""
        key = self._pair_key(draft)
        self._pairs.pop(key, None)
        self._store.save_arrays("pairs", key, calibration.to_arrays())
        with self._store.locked():
            known = self._store.load_json("pairs", key) or {}
            self._store.save_json("pairs", key, {**known, self._cost_key: costs.to_json()})

    def save_trial(self, draft: str, right: int, scored: int) -> None:
        """Keep how often a draft model that was just made was right in a trial; its work was not timed."""
        calibration = ModelCalibration.of_trial(right, scored)
        self._pairs.pop(self._pair_key(draft), None)
        self._store.save_arrays("pairs", self._pair_key(draft), calibration.to_arrays())

    def _pair_key(self, draft: str) -> str:
        return f"{self._model_key}-{draft}"

    def free_drafter(self, vocab_size: int, sources: Sequence[str]) -> FreeDrafter:
        """A drafter of the free `sources` that starts from everything kept of this model."""
        self._harvest()
        self._drafted = True
        corpus = self.corpora.open(vocab_size)
        drafter = FreeDrafter(vocab_size, self._calibration, sources, corpus=corpus)
        if len(self._history) and not -1 <= self._history.min() <= self._history.max() < vocab_size:
            self._store.set_aside("history", self._model_key)
            self._history = NO_TOKENS
        known = _latest(self._history, self._added)
        if len(known):
            drafter.preload(known)
        if self._rows is not None:
            try:
                drafter.restore(self._rows)
            except ValueError:
                self._store.set_aside("recycle", self._model_key)
                self._rows = None
        self._drafter = drafter
        return drafter

    def remember(self, tokens: Sequence[int]) -> None:
        """An answer is finished: later conversations may draft from it."""
        if not tokens:
            return
        self._added = _latest(self._added, np.array([*tokens, SEPARATOR], np.int32))

    def forget(self) -> None:
        """Drop everything learned since the store was read."""
        self._drafter = None
        self._calibration = self._load_calibration()
        self._history, self._added = self._load_history(), NO_TOKENS
        self._rows = self._store.load_arrays("recycle", self._model_key)
        self.lengths = Lengths(self._store, self._model_key)

    def save(self) -> None:
        """Keep calibrations, earlier answers and recycled continuations."""
        self.records.save()
        self._save_origin()
        if len(self._added):
            with self._store.locked():  # another process may have added answers meanwhile
                self._history, self._added = _latest(self._load_history(), self._added), NO_TOKENS
                self._store.save_arrays("history", self._model_key, {"tokens": self._history})
        if not self._drafted:
            return
        self._store.save_arrays("calibration", self._model_key, self._calibration.to_arrays())
        self._harvest()
        if self._rows is not None:
            self._store.save_arrays("recycle", self._model_key, self._rows)

    def _save_origin(self) -> None:
        if self._origin is None:
            return
        name, path = self._origin
        about = {"name": name, "path": str(path.absolute())}
        if self._store.load_json("model", self._model_key) != about:
            self._store.save_json("model", self._model_key, about)

    def _harvest(self) -> None:
        """Take over the recycling table of the present drafter, which a new drafter starts from."""
        if self._drafter is not None:
            rows = self._drafter.to_arrays()
            if len(rows["tokens"]):
                self._rows = rows
            self._drafter = None

    def _load_calibration(self) -> Calibration:
        arrays = self._store.load_arrays("calibration", self._model_key)
        if arrays is not None:
            try:
                return Calibration.from_arrays(arrays)
            except (ValueError, TypeError, KeyError):
                self._store.set_aside("calibration", self._model_key)
        return Calibration()

    def _load_history(self) -> NDArray[np.int32]:
        arrays = self._store.load_arrays("history", self._model_key)
        if arrays is None:
            return NO_TOKENS
        tokens = arrays.get("tokens")
        if tokens is None or tokens.ndim != 1 or tokens.dtype != np.int32:
            self._store.set_aside("history", self._model_key)
            return NO_TOKENS
        return tokens[-HISTORY_TOKENS:]


def _latest(before: NDArray[np.int32], after: NDArray[np.int32]) -> NDArray[np.int32]:
    """The last `HISTORY_TOKENS` of two stretches of tokens."""
    return np.concatenate((before, after))[-HISTORY_TOKENS:]


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """What drafters start from. Implements `registry.Known`."""

    vocab: Vocab
    learned: Learned

    def free(self, sources: Sequence[str]) -> Drafter:
        """A drafter of these free sources."""
        return ForcedDrafter(self.learned.free_drafter(self.vocab.size, sources), self.vocab)
