"""What computing with recurrent states takes: earlier states that are kept, and the buffer of a graph."""

from __future__ import annotations

from specx.backends.gguf.cache_size import layer_state_bytes, state_bytes
from specx.backends.gguf.file import ROLLBACK, GGUFInfo
from specx.backends.settings import Load

__all__ = ["kept_states", "state_compute_bytes", "state_copies"]

FLOAT_BYTES = 4


def kept_states(info: GGUFInfo, load: Load) -> int:
    """Earlier states of recurrent layers that are kept of each text."""
    return min(load.kept_states, ROLLBACK[info.architecture]) if info.can_go_back else 0


def state_copies(info: GGUFInfo, load: Load) -> int:
    """Bytes of the copies that are taken of the states of all texts, one of each."""
    return load.texts * state_bytes(info) if info.can_go_back else 0


def state_compute_bytes(info: GGUFInfo, load: Load, n_ubatch: int) -> int:
    """The buffer for the graph of `n_ubatch` tokens at a recurrent layer: all states that it puts out, and
    of each token what goes into it and comes out. Derived from what llama.cpp reports for models of three
    shapes; 0 where other parts are wider."""
    inner, size = info.integer("ssm.inner_size"), info.integer("ssm.state_size")
    heads, groups = info.integer("ssm.time_step_rank"), info.integer("ssm.group_count")
    if not info.can_go_back or not groups:
        return 0
    keys = groups * size
    convolved, width = inner + 2 * keys, info.embedding_length
    states = 1 + kept_states(info, load)
    if info.architecture.startswith("nemotron"):
        row = (inner + convolved + heads) + 2 * convolved + inner + 3 * width + 2 * heads
    else:
        row, states = 2 * (convolved + inner + keys), states + 1
    return n_ubatch * FLOAT_BYTES * row + load.texts * states * layer_state_bytes(info)
