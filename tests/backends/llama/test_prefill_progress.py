"""What `progress` raises ends the reading of a prompt at once; the text goes on as if it had not begun."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.llama.cache import LlamaCache
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load


class Stopped(Exception):
    pass


def row(cache: LlamaCache) -> np.ndarray:
    logits = cache.forward(np.array([5], np.int32), np.array([-1], np.int32)).logits[0].copy()
    cache.keep([0])
    return logits


@pytest.mark.parametrize("piece", [0, 1])
def test_a_raising_progress_stops_within_a_piece(smollm2, piece):
    settings = Load(smollm2, 1, 1, n_ctx=512, n_ubatch=128)
    model = LlamaModel(settings)
    cache = model.open()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 128 * piece and len(seen) > 3 and seen[-2] == done:
            raise Stopped

    with pytest.raises(Stopped):
        cache.prefill(range(1000, 1300), progress=progress)
    assert cache.length == 128 * piece == seen[-1]
    assert seen.count(seen[-1]) < 10  # hundreds of operations were left
    cache.rewind(0)
    cache.prefill(range(1000, 1100))
    after = row(cache)
    cache.rewind(0)
    cache.prefill(range(1000, 1100), progress=lambda _done, _total: None)
    assert (row(cache) == after).all()
    model.close()
