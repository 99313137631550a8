"""Tiny draft heads of random weights in llama.cpp's forms, and what they compute, in NumPy."""

from __future__ import annotations

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD, FEED = 64, 4, 2, 16, 96
EPSILON, ROPE_BASE = 1e-5, 10000.0
TOKENIZER = "tokenizer."


def random_weights(rng, *, d_target, n_vocab, n_draft, norm_before_fc, width=WIDTH):
    """The matrices and norms of a head, by their names in the file."""

    def matrix(inputs, outputs):
        return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    def norm(n):
        return rng.uniform(0.5, 1.5, n).astype(np.float32)

    block, both = "blk.0.", 2 * width
    weights = {
        "fc.weight": matrix(3 * d_target, width),
        "output_norm.weight": norm(width),
        "output.weight": 3 * matrix(width, n_draft or n_vocab),
        block + "attn_norm.weight": norm(width),
        block + "attn_norm_2.weight": norm(width),
        block + "attn_q.weight": matrix(both, HEADS * HEAD),
        block + "attn_k.weight": matrix(both, KV_HEADS * HEAD),
        block + "attn_v.weight": matrix(both, KV_HEADS * HEAD),
        block + "attn_output.weight": matrix(HEADS * HEAD, width),
        block + "ffn_norm.weight": norm(width),
        block + "ffn_gate.weight": matrix(width, FEED),
        block + "ffn_up.weight": matrix(width, FEED),
        block + "ffn_down.weight": matrix(FEED, width),
    }
    if norm_before_fc:
        weights["enc.output_norm.weight"] = norm(3 * d_target)
    return weights


def metadata(layers, d_target, width, norm_before_fc, norm_before_residual):
    """Value and type of every key of a head but its tokenizer's."""
    kinds = gguf.GGUFValueType
    keys = {
        "block_count": (1, kinds.UINT32),
        "context_length": (512, kinds.UINT32),
        "embedding_length": (width, kinds.UINT32),
        "feed_forward_length": (FEED, kinds.UINT32),
        "attention.head_count": (HEADS, kinds.UINT32),
        "attention.head_count_kv": (KV_HEADS, kinds.UINT32),
        "attention.key_length": (HEAD, kinds.UINT32),
        "attention.value_length": (HEAD, kinds.UINT32),
        "attention.layer_norm_rms_epsilon": (EPSILON, kinds.FLOAT32),
        "rope.dimension_count": (HEAD, kinds.UINT32),
        "rope.freq_base": (ROPE_BASE, kinds.FLOAT32),
        "target_layers": (list(layers), kinds.INT32),
        "target_hidden_size": (d_target, kinds.UINT32),
        "norm_before_fc": (norm_before_fc, kinds.BOOL),
        "norm_before_residual": (norm_before_residual, kinds.BOOL),
    }
    return {f"eagle3.{key}": found for key, found in keys.items()}


def write_eagle3(
    path,
    *,
    d_target,
    n_vocab,
    layers,
    n_draft=None,
    norm_before_fc=False,
    norm_before_residual=False,
    own_embeddings=True,
    own_output=True,
    tokens=None,
    seed=0,
    width=WIDTH,
    extra=(),
    without=(),
    replaced=(),
):
    """Write a head of random 32-bit weights.

    Args:
        path: the file.
        d_target, n_vocab: width and tokens of the target.
        layers: that it reads.
        n_draft: tokens that it scores; None for all.
        own_embeddings, own_output: whether the file has the matrices, or the target's are used.
        tokens: the target's GGUF, whose tokenizer is copied.
        extra: (key, value, type) of further metadata, or instead of what is there.
        without: keys and tensors that are left out.
        replaced: (name, array) of tensors that are others.

    Returns:
        Weights by name, "d2t" and "token_embd.weight" among them where there are any.
    """
    rng = np.random.default_rng(seed)
    weights = random_weights(
        rng, d_target=d_target, n_vocab=n_vocab, n_draft=n_draft, norm_before_fc=norm_before_fc, width=width
    )
    if n_draft is not None:
        weights["d2t"] = np.sort(rng.choice(n_vocab, n_draft, replace=False)).astype(np.int64)
    if own_embeddings:
        weights["token_embd.weight"] = rng.standard_normal((n_vocab, width)).astype(np.float32)
    if not own_output:
        del weights["output.weight"]
    entries = metadata(layers, d_target, width, norm_before_fc, norm_before_residual)
    entries |= {key: (value, kind) for key, value, kind in extra}
    write(path, "eagle3", entries, weights, tokens, without, replaced)
    return weights


def write(path, architecture, entries, weights, tokens, without, replaced):
    """Write a file of these entries and weights."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, (value, kind) in entries.items():
        if key not in without:
            types = (gguf.GGUFValueType.ARRAY, kind) if isinstance(value, list) else (kind,)
            writer.add_key_value(key, value, *types)
    if tokens is not None:
        copy_tokenizer(tokens, writer)
    for name, values in {**weights, **dict(replaced)}.items():
        if name not in without:
            writer.add_tensor(name, values)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def write_dflash(
    path,
    *,
    n_vocab,
    layers,
    width=WIDTH,
    blocks=2,
    size=6,
    mask=1,
    causal=False,
    markov=0,
    from_anchor=True,
    n_draft=None,
    own_embeddings=True,
    own_output=True,
    tokens=None,
    seed=0,
    extra=(),
    without=(),
    replaced=(),
):
    """Write a head of random 32-bit weights that drafts a block at once; arguments as of `write_eagle3`.

    Args:
        blocks: layers of its own.
        size, mask, causal: of the block.
        markov: rank of the bias by the token before; 0 for none.
        from_anchor: whether the first place drafts, where there is one.

    Returns:
        Weights by name.
    """
    rng, kinds = np.random.default_rng(seed), gguf.GGUFValueType

    def matrix(inputs, outputs):
        return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    def norm(n):
        return rng.uniform(0.5, 1.5, n).astype(np.float32)

    weights = {"fc.weight": matrix(len(layers) * width, width), "enc.output_norm.weight": norm(width)}
    for i in range(blocks):
        block = f"blk.{i}."
        for name, inputs, outputs in (
            ("attn_q", width, HEADS * HEAD),
            ("attn_k", width, KV_HEADS * HEAD),
            ("attn_v", width, KV_HEADS * HEAD),
            ("attn_output", HEADS * HEAD, width),
            ("ffn_gate", width, FEED),
            ("ffn_up", width, FEED),
            ("ffn_down", FEED, width),
        ):
            weights[f"{block}{name}.weight"] = matrix(inputs, outputs)
        for name, size_of in (("attn_norm", width), ("ffn_norm", width), ("attn_q_norm", HEAD)):
            weights[f"{block}{name}.weight"] = norm(size_of)
        weights[f"{block}attn_k_norm.weight"] = norm(HEAD)
    weights["output_norm.weight"] = norm(width)
    if own_output:
        weights["output.weight"] = 3 * matrix(width, n_draft or n_vocab)
    if own_embeddings:
        weights["token_embd.weight"] = rng.standard_normal((n_vocab, width)).astype(np.float32)
    if n_draft is not None:
        weights["d2t"] = np.sort(rng.choice(n_vocab, n_draft, replace=False)).astype(np.int64)
    if markov:
        weights["markov_w1.weight"] = rng.standard_normal((n_vocab, markov)).astype(np.float32)
        weights["markov_w2.weight"] = rng.standard_normal((n_draft or n_vocab, markov)).astype(np.float32)
    entries = {
        key.replace("eagle3", "dflash"): found
        for key, found in metadata(layers, width, width, False, False).items()
        if "norm_before" not in key and "target_hidden" not in key
    }
    entries["dflash.block_count"] = blocks, kinds.UINT32
    entries["dflash.block_size"] = size, kinds.UINT32
    entries["dflash.attention.causal"] = causal, kinds.BOOL
    if markov:
        entries["dflash.sample_from_anchor"] = from_anchor, kinds.BOOL
    if mask is not None:
        entries["tokenizer.ggml.mask_token_id"] = mask, kinds.UINT32
    entries |= {key: (value, kind) for key, value, kind in extra}
    write(path, "dflash", entries, weights, tokens, without, replaced)
    return weights


def copy_tokenizer(source, writer):
    """All of a file's tokenizer."""
    for key, field in gguf.GGUFReader(source).fields.items():
        if key.startswith(TOKENIZER):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)


class NumpyHead:
    """What a head computes, from its weights: one text, position by position."""

    def __init__(self, weights, *, norm_before_residual=False):
        self.weights, self.norm_before_residual = weights, norm_before_residual
        self.keys, self.values = [], []

    def encode(self, features):
        """(n, d) of what the target gives (n, 3 d_t)."""
        if "enc.output_norm.weight" in self.weights:
            features = self.normed(features, "enc.output_norm.weight")
        return features @ self.weights["fc.weight"].T

    def step(self, token, hidden):
        """Logits (V or R,) and the hidden state (d,) after one more pair."""
        block, position = "blk.0.", len(self.keys)
        read = self.normed(hidden, block + "attn_norm_2.weight")
        both = np.concatenate(
            [self.normed(self.weights["token_embd.weight"][token], block + "attn_norm.weight"), read]
        )
        query, key, value = (
            (self.weights[f"{block}attn_{name}.weight"] @ both).reshape(-1, HEAD) for name in "qkv"
        )
        self.keys.append(rotated(key, position))
        self.values.append(value)
        query, group = rotated(query, position), HEADS // KV_HEADS
        attended = []
        for head in range(HEADS):
            keys = np.array([each[head // group] for each in self.keys])
            scores = keys @ query[head] / np.sqrt(HEAD)
            shares = np.exp(scores - scores.max())
            values = np.array([each[head // group] for each in self.values])
            attended.append(shares / shares.sum() @ values)
        x = self.weights[block + "attn_output.weight"] @ np.concatenate(attended)
        x = x + (read if self.norm_before_residual else hidden)
        inner = self.normed(x, block + "ffn_norm.weight")
        gate = self.weights[block + "ffn_gate.weight"] @ inner
        up = self.weights[block + "ffn_up.weight"] @ inner
        x = x + self.weights[block + "ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        return self.weights["output.weight"] @ self.normed(x, "output_norm.weight"), x

    def rewind(self, length):
        """Forget positions from `length` on."""
        del self.keys[length:], self.values[length:]

    def normed(self, x, name):
        """RMS norm."""
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * self.weights[name]


class NumpyBlockHead:
    """What a head computes that drafts a block at once, from its weights."""

    def __init__(self, weights, *, size=6, mask=1, causal=False, from_anchor=True):
        self.weights, self.size, self.mask, self.causal = weights, size, mask, causal
        self.first = 0 if "markov_w1.weight" in weights and from_anchor else 1
        self.blocks = sum(name.endswith("attn_q.weight") for name in weights)

    def draft(self, features, token):
        """(most, R) logits after n tokens with these states (n, k * d) and one more."""
        weights = self.weights
        known = normed(features @ weights["fc.weight"].T, weights["enc.output_norm.weight"])
        tokens = [token] + [self.mask] * (self.size - 1)
        x, n = weights["token_embd.weight"][tokens], len(features)
        for i in range(self.blocks):
            block = f"blk.{i}."
            inner = normed(x, weights[block + "attn_norm.weight"])
            x = x + self.attended(block, known, inner, n) @ weights[block + "attn_output.weight"].T
            inner = normed(x, weights[block + "ffn_norm.weight"])
            gate, up = (inner @ weights[f"{block}ffn_{name}.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[block + "ffn_down.weight"].T
        logits = normed(x, weights["output_norm.weight"]) @ weights["output.weight"].T
        return self.biased(logits, token)[self.first :]

    def attended(self, block, known, inner, n):
        """(size, H * d) what the tokens of a block see of the known ones and each other."""

        def rows(x, name, start):
            out = (x @ self.weights[f"{block}attn_{name}.weight"].T).reshape(len(x), -1, HEAD)
            if name == "v":
                return out
            out = normed(out, self.weights[f"{block}attn_{name}_norm.weight"])
            return np.stack([turned(row, start + i) for i, row in enumerate(out)])

        query = rows(inner, "q", n)
        keys, values = (np.concatenate([rows(known, name, 0), rows(inner, name, n)]) for name in "kv")
        found = np.empty((len(inner), HEADS, HEAD))
        for place in range(len(inner)):
            seen = n + (place + 1 if self.causal else len(inner))
            for head in range(HEADS):
                scores = keys[:seen, head // (HEADS // KV_HEADS)] @ query[place, head] / np.sqrt(HEAD)
                shares = np.exp(scores - scores.max())
                found[place, head] = shares / shares.sum() @ values[:seen, head // (HEADS // KV_HEADS)]
        return found.reshape(len(inner), -1)

    def biased(self, logits, token):
        """With what the token before says, each being the likeliest."""
        if "markov_w1.weight" not in self.weights:
            return logits
        for place in range(self.first, len(logits)):
            bias = self.weights["markov_w2.weight"] @ self.weights["markov_w1.weight"][token]
            logits[place] = logits[place] + bias
            token = logits[place].argmax()
            if "d2t" in self.weights:
                token = self.weights["d2t"][token]
        return logits


def normed(x, weight):
    """RMS norm."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * weight


def turned(rows, position):
    """Rotary embedding of halves (i, i + d / 2)."""
    angles = position * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    low, high = rows[:, : HEAD // 2], rows[:, HEAD // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([low * cos - high * sin, low * sin + high * cos], axis=1)


def rotated(rows, position):
    """Rotary embedding of neighbours (2i, 2i + 1)."""
    angles = position * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    even, odd = rows[:, 0::2], rows[:, 1::2]
    out = np.empty_like(rows)
    out[:, 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[:, 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return out
