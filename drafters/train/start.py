"""Where a head starts: as what of it can be computed at once, by least squares on captured states.

The input x of the target's last layer is captured, and of it that layer's feed-forward network F makes nearly
what the output is computed from, y = x + F(x). So a head that has F for its own needs the next x, and a
linear map of what it is given comes near: before its first batch it is right of three tokens in ten. Its
stream stands for y:

    x' = y + A [e; y]     e: the embedding of the next token; y and e normalized; A by least squares
    y' = x' + F(x')       what is scored, and what the next step goes on from

A is what attention does that looks at the position itself: queries are keys, and these a random projection of
the token. What `fc` makes of the features, which tell more than y, is what is best put in y's place for x',
by least squares with a term that holds it near y. Heads of attention beside those begin by copying
(`drafters.train.copying`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from specx.backends.gguf.file import GGUFInfo
from specx.drafters.train.batches import Rows
from specx.drafters.train.copying import start_copying
from specx.drafters.train.export import target_matrix
from specx.drafters.train.head import Head
from specx.drafters.train.least_squares import low_rank, sizes_of, solved
from specx.drafters.train.states import StatesFile

__all__ = ["LastLayer", "last_layer", "start"]

SAMPLE = 50_000  # tokens that the maps are fitted on
NEAR = 0.1  # how much it matters that `fc` gives y, of what x' does
FOCUS = 30.0  # score of a position for itself
TRIED = 500  # tokens that tell whether the last feed-forward network is one that a head can have


@dataclass(frozen=True, slots=True)
class LastLayer:
    """What a head takes over of the target's last layer.

    Attributes:
        output_norm: (d,) weight of the norm before the output matrix.
        ffn: norm (d,), gate (f, d), up (f, d) and down (d, f); None where its feed-forward network is none
            that a head can have.
    """

    output_norm: Tensor
    ffn: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def left(self, x: Tensor, epsilon: float) -> Tensor:
        """(n, d) nearly what leaves it, of what enters it: its attention moves little."""
        if self.ffn is None:
            return x
        norm, gate, up, down = self.ffn
        normal = functional.rms_norm(x, norm.shape, norm, epsilon)
        gated = functional.silu(functional.linear(normal, gate)) * functional.linear(normal, up)
        return x + functional.linear(gated, down)


@dataclass(slots=True)
class _Moments:
    """Weighted means over a sample, of inputs u = [features; e; y], normalized, and of y and x', whose values
    are divided by their sizes.

    Attributes:
        inputs: of u u^T.
        now, next: of u y^T and of u x'^T.
        inverse: of the inverse of y's root mean square.
        size: (d,) of the values of y and x'.
    """

    inputs: Tensor
    now: Tensor
    next: Tensor
    inverse: float
    size: Tensor


def last_layer(info: GGUFInfo) -> LastLayer:
    """The last layer of a model.

    Raises:
        KeyError: it has no norm before its output matrix.
        NotImplementedError, ValueError: its tensors are of a type that cannot be decoded.
    """
    names = {tensor.name for tensor in info.tensors}
    ffn = [f"blk.{info.blocks - 1}.ffn_{part}.weight" for part in ("norm", "gate", "up", "down")]

    def weight(name: str) -> Tensor:
        return torch.from_numpy(target_matrix(info, name))

    if not names.issuperset(ffn):
        return LastLayer(weight("output_norm.weight"))
    norm, gate, up, down = (weight(name) for name in ffn)
    return LastLayer(weight("output_norm.weight"), (norm, gate, up, down))


@torch.no_grad()
def start(head: Head, last: LastLayer, states: StatesFile, texts: Sequence[int], rows: Rows) -> None:
    """Set a head's weights to those that it starts with. Its width is the target's.

    Args:
        head: the head.
        last: the target's last layer.
        states: captured texts.
        texts: indices of those to fit it on.
        rows: the tokens that the head scores.
    """
    shape, d, f = head.shape, head.shape.width, head.shape.features
    if not _tells(head, last, states, texts, rows):
        last = replace(last, ffn=None)
    found = _moments(head, last, states, texts)
    moves = solved(found.inputs[f:, f:], (found.next - found.now)[f:]).T
    own = shape.kv_heads - shape.copying
    values, back = low_rank(moves, found.inputs[f:, f:], own * shape.head_width)
    moved = back @ values
    # y as attention reads it is divided by its root mean square, and its values are not by their sizes
    through = torch.eye(d) + moved[:, d:] * (found.size * found.inverse)
    rest = found.next[:f] - found.inputs[:f, f : f + d] @ moved[:, :d].T
    wanted = rest @ through + NEAR * found.now[:f]
    mixed = torch.linalg.solve(through.T @ through + NEAR * torch.eye(d), wanted.T).T
    fc = solved(found.inputs[:f, :f], mixed).T
    sizes = sizes_of(found.inputs.diagonal().sqrt())
    stream = found.size / found.size.median()  # the stream's values have a size of about 1
    if head.enc_norm is not None:
        head.enc_norm.weight.copy_(1 / sizes[:f])
    head.attn_norm.weight.copy_(1 / sizes[f : f + d])
    head.attn_norm_2.weight.copy_(1 / sizes[f + d :])
    head.fc.copy_(stream[:, None] * fc * sizes[:f])
    _set_attention(head, values * sizes[f:], stream[:, None] * back)
    unit = float(found.size.median())
    _set_ffn(head, last, unit)
    head.output_norm.weight.copy_(last.output_norm)
    start_copying(head, states, texts, unit)


def _tells(head: Head, last: LastLayer, states: StatesFile, texts: Sequence[int], rows: Rows) -> bool:
    """Whether what the last layer makes of its input with `LastLayer.ffn` tells better what the target chose
    than that input does: others have another activation, or norms that a head does not have."""
    if last.ffn is None or len(last.ffn[1]) > head.shape.ffn:
        return False
    right, tokens = [0, 0], 0
    for index in texts:
        text = states[index]
        x = torch.from_numpy(text.features[1:TRIED, -head.shape.width :].astype(np.float32))
        best = torch.from_numpy(rows.row[text.best[1:TRIED, 0]])
        for i, y in enumerate((x, last.left(x, head.shape.epsilon))):
            normal = functional.rms_norm(y, last.output_norm.shape, last.output_norm, head.shape.epsilon)
            right[i] += int((functional.linear(normal, head.output).argmax(1) == best).sum())
        tokens += len(x)
        if tokens >= TRIED:
            break
    return right[1] > right[0]


def _set_attention(head: Head, values: Tensor, back: Tensor) -> None:
    """Attention that looks at its own position, and has these maps: (R, 2d) and (d, R)."""
    shape, d = head.shape, head.shape.width
    groups, each = shape.kv_heads - shape.copying, shape.heads // shape.kv_heads
    wide = groups * shape.head_width
    deviation = (FOCUS / (shape.head_width**0.5 * d)) ** 0.5
    keys = torch.randn(wide, 2 * d) * deviation
    keys[:, d:] *= 0.1
    head.attn_k[:wide] = keys
    head.attn_q[: wide * each] = _repeated(keys, groups, each)
    head.attn_v[:wide] = 0
    order = torch.arange(wide).view(-1, groups).T.flatten()  # each head has of all
    order = order[order < len(values)]
    head.attn_v[: len(order)] = values[order]
    whole = torch.zeros(d, wide)
    whole[:, : len(order)] = back[:, order]
    head.attn_output[:, : wide * each] = _repeated(whole.T / each, groups, each).T


def _set_ffn(head: Head, last: LastLayer, unit: float) -> None:
    """The target's feed-forward network, for a stream that is smaller by `unit`."""
    if last.ffn is None:
        return
    norm, gate, up, down = last.ffn
    own = len(gate)
    head.ffn_norm.weight.copy_(norm)
    head.ffn_gate[:own] = gate
    head.ffn_up[:own] = up
    head.ffn_down[:, :own] = down / unit


def _repeated(rows: Tensor, groups: int, each: int) -> Tensor:
    """(groups each w, n): the w rows of every group, so many times."""
    return rows.view(groups, 1, -1, rows.shape[1]).expand(-1, each, -1, -1).reshape(-1, rows.shape[1])


def _moments(head: Head, last: LastLayer, states: StatesFile, texts: Sequence[int]) -> _Moments:
    """Of a sample of the texts."""
    d, whole = head.shape.width, head.shape.features + 2 * head.shape.width
    inputs, targets, total, inverse = torch.zeros(whole, whole), torch.zeros(whole, 2 * d), 0.0, 0.0
    squares = torch.zeros(d)
    for u, y, following in _sample(head, last, states, texts):
        weight = 1 / following.square().mean(1)
        weighted = u * weight[:, None]
        inputs += weighted.T @ u
        targets += weighted.T @ torch.cat([y, following], 1)
        squares += weight @ y.square()
        inverse += float(weight @ y.square().mean(1).rsqrt())
        total += float(weight.sum())
    size = sizes_of((squares / total).sqrt())
    targets /= total
    return _Moments(inputs / total, targets[:, :d] / size, targets[:, d:] / size, inverse / total, size)


def _sample(
    head: Head, last: LastLayer, states: StatesFile, texts: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """u (n, 3 d_t + 2 d), y (n, d) and x' (n, d) of texts, until there are enough."""
    d, epsilon, tokens = head.shape.width, head.shape.epsilon, 0
    embedding = head.get_buffer("embedding")
    for index in texts:
        text = states[index]
        if tokens > SAMPLE:
            break
        features = torch.from_numpy(text.features[1:].astype(np.float32))  # nothing is before the first token
        if len(features) < 2:
            continue
        tokens += len(features) - 1
        x = features[:, -d:]
        y = last.left(x[:-1], epsilon)
        e = embedding[torch.from_numpy(text.tokens[2:].astype(np.int64))]
        read = features[:-1]
        if head.enc_norm is not None:
            read = functional.rms_norm(read, read.shape[1:], None, epsilon)
        normal = [functional.rms_norm(each, (d,), None, epsilon) for each in (e, y)]
        yield torch.cat([read, *normal], 1), y, x[1:]
