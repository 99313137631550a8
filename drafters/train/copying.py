"""Heads of attention that begin by copying: what followed the present token before is likely to follow again.

A layer that is to find that out for itself needs much text: attention that looks at nothing else yet gives it
no gradient. So some heads begin as induction heads are found to be (Olsson et al., arXiv 2209.11895). Pair j
is the token j + 1 with the state of token j. Queries know the present token, keys the token whose state they
are given, values the token behind it:

    q = R e[j + 1]      k = R B s[j]      v = P e[j + 1]

e: tokens as attention reads them; s: states, likewise; B: the map of least squares from the state of a token
to that token; R: random, on those values that the rotary embedding hardly turns within a window; P: what
matters most of the map from the next token to the input of the target's last layer. What leaves these heads
is added by the map of least squares from it to what the other heads leave of that input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from specx.drafters.train.batches import WINDOW
from specx.drafters.train.head import Head, Keys
from specx.drafters.train.least_squares import low_rank, solved
from specx.drafters.train.states import StatesFile

__all__ = ["start_copying"]

SAMPLE = 30_000  # tokens that the maps are fitted on
LONGEST = 4 * WINDOW  # tokens of a text
SHORTEST = 3  # tokens after the first: one whose state is known, the next one, and what follows that
SHARP = 20.0  # score of a token for itself, if its state told it wholly
TURNED = 0.6  # radians that a value may be turned within a window


@torch.no_grad()
def start_copying(head: Head, states: StatesFile, texts: Sequence[int], unit: float) -> None:
    """Let the heads of attention that are to copy do so; the others, and all else, are set already.

    Args:
        head: the head.
        states: captured texts.
        texts: indices of those to fit it on.
        unit: what the inputs of the target's last layer are divided by to be what the head computes.
    """
    shape, d = head.shape, head.shape.width
    own, wide = (shape.heads - shape.copying) * shape.head_width, shape.copying * shape.head_width
    head.attn_output[:, own:] = 0
    turned = _hardly_turned(shape.rope_base, shape.head_width)
    if not wide or not len(turned) or not any(True for _ in _sample(states, texts)):
        return
    told, following = _maps(head, states, texts, unit)
    values, _ = low_rank(following[1].T, following[0], wide)
    scale = (SHARP * shape.head_width**0.5 / len(turned)) ** 0.5
    for matrix in (head.attn_q, head.attn_k, head.attn_v):
        matrix[own:] = 0
    for begin in range(own, own + wide, shape.head_width):
        random = torch.zeros(shape.head_width, d)
        random[turned] = torch.randn(len(turned), d) * d**-0.5 * scale
        head.attn_q[begin : begin + shape.head_width, :d] = random
        head.attn_k[begin : begin + shape.head_width, d:] = random @ told.T
    head.attn_v[own : own + len(values), :d] = values
    head.attn_output[:, own:] = _what_is_left(head, states, texts, unit, own).T


def _hardly_turned(base: float, width: int) -> Tensor:
    """Which of the values of a key the rotary embedding turns by little within a window."""
    angles = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) * WINDOW
    pairs = torch.nonzero(angles < TURNED)[:, 0]
    return torch.cat([2 * pairs, 2 * pairs + 1])


def _maps(
    head: Head, states: StatesFile, texts: Sequence[int], unit: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(d, d) from a state to its token, and of the map from the next token to x second moments of the token
    (d, d), and that map (d, d)."""
    d = head.shape.width
    moments = [torch.zeros(d, d) for _ in range(4)]
    total = 0
    for features, tokens in _sample(states, texts):
        state = head.attn_norm_2(head.encode(features))[0]
        token = head.embed(tokens)[0]
        following, x = token[2:], features[0, 1:-1, -d:] / unit
        weight = 1 / x.square().mean(1, keepdim=True)
        weighted = following * weight
        moments[0] += state.T @ state
        moments[1] += state.T @ token
        moments[2] += weighted.T @ following
        moments[3] += weighted.T @ x
        total += len(token)
    known, told, following, inputs = (each / total for each in moments)
    return solved(known, told), (following, solved(following, inputs))


def _what_is_left(head: Head, states: StatesFile, texts: Sequence[int], unit: float, own: int) -> Tensor:
    """(w, d) from what the heads that copy find to what is missing in the input of the last layer."""
    d, wide = head.shape.width, head.attn_output.shape[1] - own
    found, crossed = torch.zeros(wide, wide), torch.zeros(wide, d)
    for features, tokens in _sample(states, texts):
        n = features.shape[1] - 1
        hidden = head.encode(features[:, :n])
        attended, middle = head.attend(tokens[:, 1:], hidden, Keys(), torch.arange(n))
        x = features[0, 1:, -d:] / unit
        copied = attended[0, :, own:]
        weighted = copied / x.square().mean(1, keepdim=True)
        found += weighted.T @ copied
        crossed += weighted.T @ (x - middle[0])
    return solved(found, crossed)


def _sample(states: StatesFile, texts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (1, n, 3 d_t) and tokens (1, n) of texts, until there are enough."""
    tokens = 0
    for index in texts:
        if tokens > SAMPLE:
            break
        text = states[index]
        features = text.features[1:LONGEST].astype(np.float32)  # nothing is before the first token
        if len(features) >= SHORTEST:
            tokens += len(features)
            ids = torch.from_numpy(text.tokens[1:LONGEST].astype(np.int64))
            yield torch.from_numpy(features)[None], ids[None]
