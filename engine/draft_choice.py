"""Where the draft models of a session come from, by what was decided for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from specx.backends.base import Model
from specx.backends.settings import FLOAT_CACHES, Load
from specx.drafters import registry
from specx.engine.drafting import DraftModels, Served
from specx.engine.setup.choice import Setup
from specx.engine.setup.finder import adapted_path, check_adapted
from specx.engine.setup.here import Here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from specx.engine.adapting import Adapting

__all__ = ["models_of"]


def models_of(setup: Setup, here: Here) -> Callable[[Served], DraftModels] | None:
    """Where draft models come from; None if nothing asks one, or there is no memory for the one named."""
    asked = setup.asked
    left_out = asked.draft.model is not None and setup.draft is None
    if not registry.find(setup.drafter.value).guessers or left_out:
        return None

    def made(session: Served) -> DraftModels:
        from specx.engine.setup.draft_files import DraftFiles
        from specx.engine.setup.layers import step_bytes
        from specx.engine.setup.load import load_chosen

        forced = setup.draft
        if forced is not None and forced.is_head and (path := adapted_path(here.store, setup.info, forced)):
            forced = check_adapted(setup.info, path) or forced

        def load(wanted: Load) -> Model:
            return load_chosen(setup.info, wanted, setup.kernels, replace(here, progress=None)).model

        return DraftModels(
            DraftFiles(setup, here, load, session.model),
            session.learned,
            session.staircase,
            step_bytes=step_bytes(setup.info),
            n_ctx=session.n_ctx,
            vocab=session.vocab,
            forced=forced,
            quantized_cache=not {asked.draft.type_k, asked.draft.type_v} <= {*FLOAT_CACHES, None},
            adapting=_adapting(setup, here, session) if asked.adapt else None,
            notice=here.notice,
            explain=here.explain,
            clock=session.clock,
        )

    return made


def _adapting(setup: Setup, here: Here, session: Served) -> Adapting:
    """What has heads learn."""
    from specx.engine.adapting import Adapting

    def costs() -> NDArray[np.float64] | None:
        return session.staircase.costs(0) if session.staircase.depths else None

    return Adapting(setup.info, here.store, costs, notice=here.notice, explain=here.explain)
