"""What `progress` raises ends the reading of a prompt at once; the backend goes on as if it had not begun."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.llama.model import LlamaBackend
from specx.backends.settings import Load


class Stopped(Exception):
    pass


def row(backend: LlamaBackend) -> np.ndarray:
    logits = backend.forward(np.array([5], np.int32), np.array([-1], np.int32)).logits[0].copy()
    backend.keep([0])
    return logits


@pytest.mark.parametrize("piece", [0, 1])
def test_a_raising_progress_stops_within_a_piece(smollm2, piece):
    settings = Load(smollm2, 1, 1, n_ctx=512, n_ubatch=128)
    backend = LlamaBackend(settings)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 128 * piece and len(seen) > 3 and seen[-2] == done:
            raise Stopped

    with pytest.raises(Stopped):
        backend.prefill(range(1000, 1300), progress=progress)
    assert backend.length == 128 * piece == seen[-1]
    assert seen.count(seen[-1]) < 10  # hundreds of operations were left
    backend.rewind(0)
    backend.prefill(range(1000, 1100))
    after = row(backend)
    backend.rewind(0)
    backend.prefill(range(1000, 1100), progress=lambda _done, _total: None)
    assert (row(backend) == after).all()
    backend.close()
