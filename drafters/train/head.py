"""The EAGLE-3 head in torch, computed as llama.cpp computes it (src/models/eagle3.cpp).

At position p it is given the token at p + 1 and a hidden state of p, and scores the token at p + 2. The
hidden state comes from the target where it is known (`Head.encode`); further on the head's own output takes
its place. Training goes on over such steps (the training-time test of EAGLE-3, arXiv 2503.01840): in step k
of the chain that starts at p, attention sees what the target gave up to p, and the chain's own steps 1 to k.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from specx.drafters.train.shape import HeadShape

__all__ = ["Head", "Keys"]


class Norm(nn.Module):
    """RMS norm with a weight, in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., width)."""
        return functional.rms_norm(x.float(), (len(self.weight),), self.weight, self.epsilon)


@dataclass(slots=True)
class Keys:
    """What later steps attend to.

    Attributes:
        keys, values: of each step (B, H_kv, M, w), one for each chain; step 0 has one for each of
            N positions.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Head(nn.Module):
    """A head. Weights have the names and shapes of the GGUF form.

    Args:
        shape: of it.
        embedding: (V, d) float32, the target's embedding of tokens, as it is looked up; it is not trained.
        output: (R, d) float32, what the output matrix begins as.
        train_output: whether that is trained as well.

    Attributes:
        output: (R, d), the output matrix.
    """

    def __init__(
        self, shape: HeadShape, embedding: Tensor, output: Tensor, *, train_output: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        d, both, attended = shape.width, 2 * shape.width, shape.heads * shape.head_width
        keyed = shape.kv_heads * shape.head_width

        def matrix(inputs: int, outputs: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

        self.register_buffer("embedding", embedding, persistent=False)
        self.enc_norm = Norm(shape.features, shape.epsilon) if shape.norm_before_fc else None
        self.fc = matrix(shape.features, d)
        self.attn_norm = Norm(d, shape.epsilon)
        self.attn_norm_2 = Norm(d, shape.epsilon)
        self.attn_q = matrix(both, attended)
        self.attn_k = matrix(both, keyed)
        self.attn_v = matrix(both, keyed)
        self.attn_output = matrix(attended, d)
        self.ffn_norm = Norm(d, shape.epsilon)
        self.ffn_gate = matrix(d, shape.ffn)
        self.ffn_up = matrix(d, shape.ffn)
        self.ffn_down = matrix(shape.ffn, d)
        self.output_norm = Norm(d, shape.epsilon)
        self.output = nn.Parameter(output.clone(), requires_grad=train_output)
        with torch.no_grad():  # begin as what passes by
            self.attn_output.mul_(0.1)
            self.ffn_down.mul_(0.1)

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.fc.device

    def encode(self, features: Tensor) -> Tensor:
        """(B, T, d) hidden states of what the target gave, (B, T, 3 d_t)."""
        if self.enc_norm is not None:
            features = self.enc_norm(features)
        return functional.linear(features, self.fc)

    def step(self, tokens: Tensor, hidden: Tensor, known: Keys, starts: Tensor) -> Tensor:
        """One step of some chains.

        Args:
            tokens: (B, M) int64, for each start p the token at p + 1 + k in step k.
            hidden: (B, M, d): what the target gave in step 0, then what this returned.
            known: what the steps before attended to; this one is added.
            starts: (M,) int64, where the chains start; in step 0 all positions do, 0 to N - 1.

        Returns:
            (B, M, d) hidden states before the output norm.
        """
        _, middle = self.attend(tokens, hidden, known, starts)
        x = self.ffn_norm(middle)
        gate = functional.silu(functional.linear(x, self.ffn_gate))
        return functional.linear(gate * functional.linear(x, self.ffn_up), self.ffn_down) + middle

    def attend(self, tokens: Tensor, hidden: Tensor, known: Keys, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The first half of `step`: (B, M, H w) what its attention finds, and (B, M, d) what goes on."""
        shape, k = self.shape, len(known.keys)
        state = self.attn_norm_2(hidden)
        joined = torch.cat([self.embed(tokens), state], -1)
        positions = starts + k
        query = self._turned(functional.linear(joined, self.attn_q), shape.heads, positions)
        known.keys.append(self._turned(functional.linear(joined, self.attn_k), shape.kv_heads, positions))
        known.values.append(_split(functional.linear(joined, self.attn_v), shape.kv_heads))
        attended = _attend(query, known, starts)
        beside = state if shape.norm_before_residual else hidden
        return attended, functional.linear(attended, self.attn_output) + beside

    def embed(self, tokens: Tensor) -> Tensor:
        """(..., d) tokens as attention reads them."""
        return self.attn_norm(functional.embedding(tokens, self.get_buffer("embedding")))

    def logits(self, hidden: Tensor, output: Tensor | None = None) -> Tensor:
        """Scores (..., R) of hidden states (..., d); of some rows (n, d) of the output matrix, if given."""
        return functional.linear(self.output_norm(hidden), self.output if output is None else output)

    def _turned(self, x: Tensor, heads: int, positions: Tensor) -> Tensor:
        """(B, heads, N, w) with the rotary embedding of `positions` (N,), of neighbouring pairs."""
        split = _split(x, heads).float()
        width = self.shape.head_width
        powers = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
        angles = positions.float()[:, None] * self.shape.rope_base**-powers
        cos, sin = angles.cos(), angles.sin()
        even, odd = split[..., 0::2], split[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, heads, N, w) of (B, N, heads w)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, known: Keys, starts: Tensor) -> Tensor:
    """(B, M, H w): queries (B, H, M, w) see step 0 up to their start, and of later steps their own.

    Heads of queries that share keys lie beside each other.
    """
    batch, heads, m, width = query.shape
    groups, n = known.keys[0].shape[1:3]
    grouped = query.view(batch, groups, heads // groups, m, width) * width**-0.5
    first = grouped @ known.keys[0].unsqueeze(2).mT
    later = torch.arange(n, device=query.device) > starts[:, None]
    scores = [first.float().masked_fill(later, float("-inf"))]
    scores += [(grouped * key.unsqueeze(2)).sum(-1, keepdim=True).float() for key in known.keys[1:]]
    weights = torch.cat(scores, -1).softmax(-1).to(query.dtype)
    mixed = weights[..., :n] @ known.values[0].unsqueeze(2)
    for i, value in enumerate(known.values[1:]):
        mixed = mixed + weights[..., n + i : n + i + 1] * value.unsqueeze(2)
    return mixed.reshape(batch, heads, m, width).transpose(1, 2).flatten(-2)
