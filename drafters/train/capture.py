"""Capturing: the target reads texts, and what it computed for each token is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Tree, Want, chain_parents
from specx.drafters.train.states import BEST, States
from specx.kernels._native import rank_tokens

__all__ = ["read_states"]


def read_states(cache: Cache, tokens: Sequence[int], start: int, best: int = BEST) -> States:
    """Read one text.

    Args:
        cache: of a model that gives the inputs of some layers (`Model.extract`); what it holds is lost.
        tokens: the text; of one that is longer than the context, the beginning.
        start: the first token that the target chose.
        best: scores to keep of each token.
    """
    whole = np.asarray(tokens, np.int32)[: cache.n_ctx]
    cache.rewind(0)
    features: list[NDArray[np.float16]] = []
    ids = np.zeros((len(whole), best), np.int32)
    scores = np.full((len(whole), best), -np.inf, np.float16)
    for at in range(0, len(whole), cache.max_width):
        piece = whole[at : at + cache.max_width]
        tree = Tree(cache, piece, chain_parents(len(piece)))
        output = cache.model.forward((tree,), Want.LOGITS | Want.HIDDEN)[0]
        assert output.hidden is not None
        features.append(np.clip(output.hidden, -65504, 65504).astype(np.float16))
        for i, row in enumerate(output.logits):
            found, values = rank_tokens(row, 0, 0, 0.0, 0, 1.0, 0.0, 1.0, best)
            ids[at + i, : len(found)] = found
            scores[at + i, : len(found)] = values - values[0]
        cache.keep(range(len(piece)))
    return States(whole, min(start, len(whole)), np.concatenate(features), ids, scores)
