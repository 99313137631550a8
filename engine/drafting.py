"""Which draft model is asked: found, tried, kept or dropped, and remembered.

Nothing here delays the first token. Files that were looked into before are known; others are looked into once
a token is out, one a step, as long as the rest of this process is expected to gain more from one of them than
that and loading it take. The best one is opened by the plan, by the same rule. It happens between two steps
and not in the background: loading competes for the cores and the memory that decoding is bound by. The steps
meanwhile would be slower by as much, and the staircase would learn wrong times from them.

What a model promises is the objective, by what is known of it, against what the drafts that cost nothing
give in the same steps. Once loaded it is paid for, and stays as long as it is faster than plain decoding by
what was measured since; otherwise it makes room for the next one, of which less is expected then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from specx.backends.base import Model, Vocab
from specx.backends.errors import SpecxError, unexpected
from specx.backends.settings import HEAD_HELD, HEAD_READ
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import GuessCosts
from specx.drafters.head import DraftHead, LoadedHead
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel
from specx.engine.cost.rate import Pace
from specx.engine.cost.staircase import Staircase
from specx.engine.decode import Step
from specx.engine.forecast import REMEMBERED, Prospect, expected_costs, forecast, known_pair
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.lengths import Outlook
from specx.engine.setup.explain import Explain, silent
from specx.engine.setup.finder import Candidate, Forecast, Unfit

if TYPE_CHECKING:
    from specx.engine.adapting import Adapting

__all__ = ["DraftModels", "ModelSource", "Served"]

MOMENT_MS = 20.0  # to look into a file, before that was timed: a vocabulary is read and compared
TIMED = 0.3  # weight of the last such moment
READING = 4.0  # plain steps that a head may read for before its first draft
HEAD_LEAST = 4  # tokens that it reads in any case
LoadedT = TypeVar("LoadedT", Model, LoadedHead)


class ModelSource(Protocol):
    """Where draft models come from."""

    def search(self) -> Iterator[Candidate | Unfit | None]:
        """What there is, as it is found; None stands for a moment's work without a finding."""

    def obstacle(self, candidate: Candidate) -> str | None:
        """Why it cannot be loaded now (one clause): memory."""

    def load(self, candidate: Candidate) -> Model:
        """The model, ready to be asked.

        Raises:
            SpecxError: it cannot be loaded.
        """

    def load_head(self, candidate: Candidate) -> LoadedHead:
        """The draft head, ready to be asked.

        Raises:
            SpecxError: it cannot be loaded.
        """

    def watch(self, layers: Sequence[int]) -> None:
        """From now on the target gives what enters these layers; with none, no more.

        Raises:
            SpecxError: it cannot.
        """


class Served(Protocol):
    """A session, as far as draft models are concerned with it."""

    @property
    def model(self) -> Model:
        """The target."""

    @property
    def learned(self) -> Learned:
        """What is kept of them."""

    @property
    def staircase(self) -> Staircase:
        """Of the target."""

    @property
    def n_ctx(self) -> int:
        """Tokens of its context."""

    @property
    def vocab(self) -> Vocab:
        """Of the target."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""


class DraftModels:
    """Chooses, opens, judges and closes draft models.

    Args:
        source: where they come from.
        learned: what is kept of them.
        staircase: of the target.
        step_bytes: bytes of weights that the target reads for a token.
        n_ctx: tokens of its context.
        vocab: of the target; where there is none, only models of the same vocabulary can draft.
        forced: the one to use whatever comes of it; None chooses among those found.
        quantized_cache: whether draft models keep their KV cache quantized.
        adapting: has heads learn from what is written, if that is wanted.
        notice, explain: told what a person should know, and every decision.
        clock: seconds.

    Attributes:
        candidate: the model that was taken up last.
        model: the same as it is asked, until it is dropped.
    """

    def __init__(
        self,
        source: ModelSource,
        learned: Learned,
        staircase: Staircase,
        *,
        step_bytes: int,
        n_ctx: int,
        vocab: Vocab | None = None,
        forced: Candidate | None = None,
        quantized_cache: bool = False,
        adapting: Adapting | None = None,
        notice: Callable[[str], None] = silent,
        explain: Explain = silent,
        clock: Callable[[], float],
    ) -> None:
        self.forced, self.adapting = forced, adapting
        if adapting is not None:
            adapting.renew = self.renew
        self.candidate: Candidate | None = None
        self.model: DraftModel | DraftHead | None = None
        self._source = source
        self._learned = learned
        self._staircase = staircase
        self._step_bytes, self._n_ctx, self._vocab = step_bytes, n_ctx, vocab
        self._quantized_cache = quantized_cache
        self._notice, self._explain, self._clock = notice, explain, clock
        self._search: Iterator[Candidate | Unfit | None] | None = source.search()
        self._begun = False
        self._found: list[Candidate] = []  # not taken up yet
        self._mixture: MixtureDrafter | None = None
        self._required = False
        self._exhausted = False  # no candidate promises anything
        self._disappointing: list[float] = []  # acceptance of models that were dropped
        self._pace = Pace()
        self._moment_ms = MOMENT_MS
        self._prospects: list[Prospect] | None = None  # what may be taken up next; None once that changes
        self._before = np.zeros(2)  # right and scored tokens of the present model before its trial
        self._judged = self._alarmed = False

    @property
    def name(self) -> str | None:
        """The model that is asked, once it is loaded."""
        loaded = self.model is not None and self.model.loaded
        return self.candidate.name if loaded and self.candidate else None

    def attach(self, drafter: MixtureDrafter | None, *, required: bool = False) -> None:
        """`drafter` takes the place of the one before, None if the present one asks no model; it is told to a
        person if there is no model for one that is `required`."""
        self._required = required
        self._mixture = drafter
        if drafter is not None and self.model is None:
            self._look_back()
        self._use(self.model)

    def after(self, step: Step, length: int, outlook: Outlook) -> None:
        """`step` was taken, by which a text has `length` committed tokens and goes on."""
        if self._mixture is None:
            return
        self._pace.add(*step.free_pace)
        if self.model is None:
            self._look_around(length, outlook)
        elif reason := self._verdict(self.model, length):
            self._drop(reason)

    def renew(self, head: Candidate) -> None:
        """`head` takes the place of the present one, from the next text on."""
        if self.model is not None:
            self._give_up(self.model)
        if self.forced is None:
            self._found.append(head)
        else:
            self.forced = head
        self._take_up(self._forecast(head, 0))

    def forget(self) -> None:
        """Go back to what was kept when the session began."""
        if self.model is not None and self.candidate is not None:
            self.model.calibration = known_pair(self.candidate, self._learned)[0]
            self._begin_trial(self.model)
            self.model.collapse.restart()

    def close(self) -> None:
        """Remember the present model and give its memory back."""
        if self.adapting is not None:
            self.adapting.close()
        if self.model is not None:
            self._give_up(self.model)

    def _give_up(self, model: DraftModel | DraftHead) -> None:
        try:
            self._remember(model)
        finally:  # a head must not outlive its target, whose matrices it reads
            self._use(None)
            model.close()
            self.model = None
            if isinstance(model, DraftHead):
                self._source.watch(())

    def _use(self, model: DraftModel | DraftHead | None) -> None:
        if self._mixture is not None:
            self._mixture.guessers[:] = [] if model is None or model.failed else [model]

    def _look_back(self) -> None:
        """Take up a head before a prompt is read, for what the target has read before cannot be made up for:
        the one that was named, or one that is the best model if it is known of all files what they are."""
        if self.forced is not None:
            if self.forced.is_head:
                self._look_around(0, Outlook())
            return
        if self._staircase.depths and not self._begun:
            self._search_on()
            best = None if self._search else self._most_promising(0, self._learned.lengths.usual())
            if best is not None and best.candidate.is_head and best.rate > best.plain_rate:
                self._take_up(best)

    def _look_around(self, length: int, outlook: Outlook) -> None:
        """A moment of looking for candidates, where that pays; when all are known, the best is taken up."""
        if self._exhausted:
            return
        if self.forced is not None:
            self._exhausted = True
            self._take_up(self._forecast(self.forced, length))
            return
        if not (self._required or self._pays(length, outlook)):
            return
        if self._search is not None:
            self._search_on()
        elif (best := self._next(length, outlook)) is not None:
            self._take_up(best)

    def _search_on(self) -> None:
        """A moment of the search."""
        self._begun = True
        start = self._clock()
        while self._search is not None:
            found = next(self._search, "end")
            if found is None:
                self._moment_ms += TIMED * ((self._clock() - start) * 1e3 - self._moment_ms)
                return
            if isinstance(found, Candidate):
                self._found.append(found)
                self._prospects = None
            elif isinstance(found, Unfit):
                self._explain(f"{found.name} cannot draft for this model: {found.reason}")
            else:
                self._search = self._prospects = None

    def _pays(self, length: int, outlook: Outlook) -> bool:
        """Whether looking on is expected to pay: the best model known, or a usual one that may yet be found,
        would be loaded.

        What a file is will be kept, and serves other processes as well; that it pays in this one is enough.
        """
        if self._prospects is None:
            best = self._most_promising(length, outlook)
            self._prospects = [] if best is None else [Prospect.of(best, self._learned)]
            if self._search is not None:
                self._prospects.append(Prospect.usual(self._staircase.costs(length), self._step_bytes))
        search_ms = 0.0 if self._search is None else self._moment_ms
        return any(each.pays(self._pace, outlook, search_ms) for each in self._prospects)

    def _next(self, length: int, outlook: Outlook) -> Forecast | None:
        """The candidate that is taken up now; None if none promises more than plain decoding."""
        best = self._most_promising(length, outlook)
        if best is not None and best.rate > best.plain_rate:
            return best
        if best is not None:
            self._explain(f"draft model {best.explained()}")
        if self._required and self.candidate is None:
            self._notice("no draft model for this model is on this machine: name one with -md FILE")
        self._exhausted = True
        return None

    def _most_promising(self, length: int, outlook: Outlook) -> Forecast | None:
        """Of the candidates not taken up yet, what saves most time; else the fastest."""
        forecasts = [self._forecast(candidate, length) for candidate in self._found]

        def worth(each: Forecast) -> tuple[bool, float]:
            value = Prospect.of(each, self._learned).value(self._pace, outlook)
            return each.rate > each.plain_rate, value

        return max(forecasts, key=worth, default=None)

    def _forecast(self, candidate: Candidate, length: int) -> Forecast:
        steps = self._staircase.costs(length)
        return forecast(candidate, self._learned, steps, self._step_bytes, self._disappointing)

    def _take_up(self, forecast: Forecast) -> None:
        """The plan opens the model when that pays."""
        candidate = forecast.candidate
        if self.forced is None:
            self._explain(f"draft model {forecast.explained()}")
            self._found.remove(candidate)
        calibration = known_pair(candidate, self._learned)[0]
        costs = expected_costs(forecast, self._learned)
        if self.forced is not None:
            costs.open_ms = 0.0  # it was asked for
        self.candidate, self._prospects = candidate, None
        self._alarmed = False
        if candidate.is_head:
            held = _held(candidate, costs, 1 / forecast.plain_rate)
            self.model = self._made_head(candidate, calibration, costs, held)
        else:
            self.model = DraftModel(
                lambda: self._load(candidate, self._source.load),
                n_ctx=self._n_ctx,
                shared=candidate.shared,
                target=self._vocab if candidate.translated else None,
                costs=costs,
                calibration=calibration,
                clock=self._clock,
            )
        self._begin_trial(self.model)
        self._use(self.model)

    def _made_head(
        self, candidate: Candidate, calibration: ModelCalibration, costs: GuessCosts, held: int
    ) -> DraftHead:
        """A head, whose hidden states the target gives from now on."""
        head = DraftHead(
            lambda: self._load(candidate, self._source.load_head),
            costs=costs,
            calibration=calibration,
            clock=self._clock,
            held=held,
            shared=candidate.shared,
        )
        if self.adapting is not None:
            head.recorder = self.adapting.recorder(candidate)
        try:
            self._source.watch(candidate.layers)
        except (SpecxError, ValueError) as error:
            head.fail(str(error))
        return head

    def _begin_trial(self, model: DraftModel | DraftHead) -> None:
        """It is judged by what is scored from now on."""
        self._before, self._judged = model.calibration.tokens.copy(), False

    def _load(self, candidate: Candidate, load: Callable[[Candidate], LoadedT]) -> LoadedT | None:
        if self.forced is None and (reason := self._source.obstacle(candidate)):
            self._explain(f"{candidate.name} is left out: {reason}")
            return None
        start = self._clock()
        try:
            model = load(candidate)
        except Exception as error:  # noqa: BLE001 -- a file that passes every check must not end an answer
            why = error if isinstance(error, SpecxError) else unexpected(error, "")
            self._notice(f"the {_kind(candidate)} {candidate.name} cannot be loaded: {why.message}")
            return None
        self._explain(f"{_kind(candidate)} {candidate.name} loaded in {self._clock() - start:.1f} s")
        return model

    def _verdict(self, model: DraftModel | DraftHead, length: int) -> str | None:
        """Why the model is to be dropped now, if it is."""
        if model.failed:
            return model.failure or "it cannot be loaded"
        if model.loaded and model.collapse.alarm:
            self._tell_collapse(model)
            self._begin_trial(model)
        right, scored = (model.calibration.tokens - self._before).tolist()
        if self._judged or scored < REMEMBERED or self.candidate is None:
            return None
        self._judged = True
        acceptance, ms = right / scored, model.costs.token_ms
        now = Forecast.of(self.candidate, self._staircase.costs(length), acceptance, ms)
        told = f"{acceptance:.0%} of its tokens right, {ms:.1f} ms a token"
        if now.rate > now.plain_rate or self.forced is not None:
            self._explain(f"the draft model is kept: {told}")
            return None
        self._disappointing.append(acceptance)
        return f"it does not pay: {told}"

    def _tell_collapse(self, model: DraftModel | DraftHead) -> None:
        expected, seen = model.collapse.rates
        cause = "another kind of text"
        if self._quantized_cache:
            cause = "its quantized KV cache (-ctkd f16 -ctvd f16 avoids that)"
        kind, name = (_kind(self.candidate), self.candidate.name) if self.candidate else ("draft model", "")
        unexpected = self.forced is not None or self._judged
        tell = self._notice if unexpected and not self._alarmed else self._explain
        self._alarmed = True
        tell(
            f"the {kind} {name} is right far less often than expected ({seen:.0%} of its last tokens, "
            f"not {expected:.0%}): probably because of {cause}"
        )
        model.collapse.restart()

    def _drop(self, reason: str) -> None:
        assert self.model is not None
        tell = self._notice if self.model.failure else self._explain  # that it cannot be loaded was told
        self._give_up(self.model)
        kind, name = (_kind(self.candidate), self.candidate.name) if self.candidate else ("draft model", "")
        tell(f"the {kind} {name} is dropped: {reason}")

    def _remember(self, model: DraftModel | DraftHead) -> None:
        if self.candidate is not None and model.loaded:
            self._learned.save_pair(self.candidate.fingerprint, model.calibration, model.costs)


def _held(candidate: Candidate, costs: GuessCosts, plain_ms: float) -> int:
    """Tokens that a head begins with. One that was trained here copies from all that it has read, and reads
    what takes no longer than a few plain steps."""
    if not candidate.trial:
        return HEAD_HELD
    return int(min(max(READING * plain_ms / max(costs.read_ms, 1e-6), HEAD_LEAST), HEAD_READ))


def _kind(candidate: Candidate) -> str:
    return "draft head" if candidate.is_head else "draft model"
