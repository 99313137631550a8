"""A draft model beside the drafters that cost nothing.

The free draft comes first. Then the plan may ask the model for one token after another; its chain and the
free draft become one tree, in which tokens that both propose are one node, and surer for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT, NO_TRUNCATION, Draft, Drafter, Offer, Truncation
from specx.drafters.calibration.model import AGREES, OTHER, SILENT, Cell, Place
from specx.drafters.merge import best_after, merge
from specx.drafters.model import ModelDrafter

__all__ = ["CombinedDrafter"]

UNKNOWN = -1  # a token that is not known yet
FORESEEN = 16  # further tokens that a chain is forecast with at once: as many as the plan weighs


class CombinedDrafter:
    """`free` with a draft model that may come and go. Implements `Drafter`.

    Attributes:
        free: the drafter that costs nothing.
        model: the draft model, or None.
    """

    def __init__(self, free: Drafter) -> None:
        self.free = free
        self.model: ModelDrafter | None = None
        self.source_names = (*free.source_names, "model")
        self._source = len(free.source_names)  # the model's index
        self._text: list[int] = []
        self._position = self._seed = 0
        self._temperature = 0.0
        self._truncation = NO_TRUNCATION
        self._emitted = False  # whether this generation has given a token
        self._draft = EMPTY_DRAFT  # of the free drafter, in this step
        self._limit, self._chains = 0, False
        self._chain: list[int] = []  # of the model, in this step
        self._hazards: list[float] = []  # of its tokens
        self._cells: list[tuple[Cell, Place]] = []  # of its tokens
        self._place: Place = (0, 0)  # where the next token is forecast from
        self._foreseen = EMPTY_DRAFT  # the chain with tokens to come, since the last offer

    @property
    def cost_ms(self) -> float:
        """Measured time of one `propose`, in milliseconds."""
        return self.free.cost_ms

    def use(self, model: ModelDrafter | None) -> None:
        """Ask `model` from the next step on, or none."""
        self.model = model
        self._chain = []
        if model is not None:
            self._begin_model(model)

    def begin(
        self,
        context: Sequence[int],
        *,
        seed: int = 0,
        temperature: float = 0.0,
        position: int | None = None,
        truncation: Truncation = NO_TRUNCATION,
    ) -> None:
        """A generation starts after `context`."""
        self.free.begin(context, seed=seed, temperature=temperature, position=position, truncation=truncation)
        self._text = list(context)
        self._position = len(context) if position is None else position
        self._seed, self._temperature, self._truncation = seed, temperature, truncation
        self._emitted = False
        self._chain = []
        if self.model is not None:
            self._begin_model(self.model)

    def propose(self, limit: int, leaves: int) -> Draft:
        """The free draft, with room for a leaf of the model's."""
        asked = self.model is not None and self.model.usable
        self._draft = self.free.propose(limit, leaves - 1 if asked and leaves > 1 else leaves)
        self._limit, self._chains = limit, leaves == 1
        self._chain, self._hazards, self._cells = [], [], []
        best = float(self._draft.probs[0]) if len(self._draft) else 0.0
        if self.model is not None:
            self._place = self.model.calibration.first(self.model.noisy, best)
        return self._draft

    def offer(self) -> Offer | None:
        """What the model would add to its chain of this step."""
        model = self.model
        most = self._limit - len(self._chain)
        if model is None or most <= 0 or not model.usable or not (model.loaded or self._emitted):
            return None  # nothing is loaded before the first token is out
        costs = model.costs
        invest_ms = 0.0
        if not self._chain:
            invest_ms = costs.reading(model.unread(())) + (0.0 if model.loaded else costs.open_ms)
        calibration = model.calibration
        expected = calibration.forecast(self._place), calibration.later(model.noisy)
        self._foreseen = EMPTY_DRAFT
        return Offer(
            partial(self._forecast, *expected), self._take, most, costs.token_ms, invest_ms, model.loaded
        )

    def observe_rows(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of a prompt."""
        self.free.observe_rows(tokens, logits)

    def observe(self, tokens: Sequence[int], draft: Draft, output: Output) -> None:
        """Let every source learn from the emitted tokens, and the model go on behind them."""
        self.free.observe(tokens, draft, output)
        self._text += tokens
        self._position += len(tokens)
        self._emitted = True
        if self.model is None:
            return
        for (cell, place), hazard, mine, token in zip(
            self._cells, self._hazards, self._chain, tokens, strict=False
        ):
            self.model.calibration.score(cell, place, mine == token)
            self.model.collapse.observe(hazard, mine == token)
            if mine != token:
                break
        self.model.append(tokens)
        self._chain = []

    def _begin_model(self, model: ModelDrafter) -> None:
        model.begin(
            self._text,
            seed=self._seed,
            temperature=self._temperature,
            position=self._position,
            truncation=self._truncation,
        )

    def _forecast(self, first: float, later: float, further: int) -> Draft:
        """The draft with `further` tokens of the model, the first of them right with probability `first`."""
        if not self._chains:
            return self._with_unknown(self._draft, first, later, further)
        if len(self._foreseen) < len(self._chain) + further:  # shorter chains are its beginnings
            self._foreseen = self._with_unknown(EMPTY_DRAFT, first, later, max(further, FORESEEN))
        return self._foreseen.head(len(self._chain) + further)

    def _with_unknown(self, draft: Draft, first: float, later: float, further: int) -> Draft:
        tokens = [*self._chain, *[UNKNOWN] * further]
        hazards = [*self._hazards, first, *[later] * (further - 1)]
        return merge(draft, tokens, hazards, self._source)

    def _take(self) -> Draft:
        model = self.model
        proposal = model.propose(self._chain) if model is not None else None
        if model is not None and proposal is not None:
            calibration = model.calibration
            depth, agreement = len(self._chain) + 1, self._agreement(proposal.token)
            cell = calibration.cell(model.noisy, proposal.margin, depth, agreement)
            self._chain.append(proposal.token)
            self._hazards.append(calibration.hazard(cell))
            self._cells.append((cell, self._place))
            self._place = calibration.following(model.noisy, proposal.margin)
        return merge(self._draft, self._chain, self._hazards, self._source)

    def _agreement(self, token: int) -> int:
        """What the free draft says at the place of the chain's next token, which is `token`."""
        best = best_after(self._draft, self._chain)
        if best is None:
            return SILENT
        return AGREES if best == token else OTHER
