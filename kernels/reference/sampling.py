"""Keyed-noise sampling in NumPy: what `sampling.cpp` computes, said plainly.

The noise of a token is a function of (seed, position, token id) and of nothing else. Philox4x32-10 (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token id >> 2, position low 32 bits, position high 32 bits, domain)

gives four words, of which a token takes word id & 3: with domain 0x73706378 as the upper, with domain
0x73706379 as the lower half of 64 bits. With b the upper 53 of these, u = (b | 1) / 2^53 is an odd multiple
of 2^-53, so never 0 or 1, and the noise is -log(-log(u)).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["gumbel", "kept", "philox4x32", "rank_tokens", "topk"]

DOMAIN = 0x73706378
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 on four 32-bit counter words and two 32-bit key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def _uniform(seed: int, position: int, token: int) -> float:
    key = (seed & MASK, seed >> 32)
    upper, lower = (
        philox4x32((token >> 2, position & MASK, position >> 32, domain), key)[token & 3]
        for domain in (DOMAIN, DOMAIN + 1)
    )
    bits = (upper << 32 | lower) >> 11
    return (bits | 1) * 2.0**-53


def gumbel(seed: int, position: int, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """Gumbel noise of the tokens `ids` at an absolute position.

    Args:
        seed: 0 <= seed < 2^64.
        position: 0 <= position < 2^64.
        ids: (m,) int32 token ids, not negative.

    Returns:
        (m,) float64.
    """
    return np.array([-math.log(-math.log(_uniform(seed, position, int(token)))) for token in ids], np.float64)


def topk(logits: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Ids of the k largest of (V,) logits, largest first, ties to the lower id; NaN and -inf do not count."""
    ids = np.flatnonzero(logits > -np.inf)
    return ids[np.lexsort((ids, -logits[ids]))][:k].astype(np.int32)


def _by_mass(
    ids: NDArray[np.int32],
    key: NDArray[np.float64],
    weight: NDArray[np.float64],
    target: float,
    strictly: bool,
) -> NDArray[np.int32]:
    """The shortest prefix of `ids`, in order of key, whose weight reaches (or exceeds) `target`."""
    order = np.lexsort((ids, key))
    mass = np.cumsum(weight[order])
    reached = mass > target if strictly else mass >= target
    return ids[order[: int(np.argmax(reached)) + 1]] if reached.any() else ids[order]


def _weights(
    logits: NDArray[np.float32], ids: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance (m,) of each token's logit from the largest one, and exp of minus that."""
    x = logits[ids].astype(np.float64)
    distance = x.max() - x
    return distance, np.exp(-distance)


def kept(
    logits: NDArray[np.float32], top_k: int, top_p: float, min_p: float, typical_p: float
) -> NDArray[np.int32]:
    """Ids of the tokens left by top-k, typical-p, top-p and min-p, in this order, as llama.cpp applies them:
    each on the softmax of what the one before it kept."""
    ids = topk(logits, top_k if top_k > 0 else len(logits))
    if len(ids) and np.isposinf(logits[ids[0]]):
        return ids[np.isposinf(logits[ids])]
    if typical_p < 1:
        distance, weight = _weights(logits, ids)
        # The surprise of a token minus the entropy is its distance minus the mean distance.
        mean = float((weight * distance).sum() / weight.sum())
        ids = _by_mass(ids, np.abs(distance - mean), weight, typical_p * float(weight.sum()), True)
    if top_p < 1:
        distance, weight = _weights(logits, ids)
        ids = _by_mass(ids, distance, weight, top_p * float(weight.sum()), False)
    if min_p > 0:
        distance, _ = _weights(logits, ids)
        ids = ids[-distance >= min(0.0, math.log(min_p))]
    return ids


def rank_tokens(
    logits: NDArray[np.float32],
    seed: int,
    position: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    count: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The best tokens after truncation, by decreasing score logit / temperature + noise.

    The scores are those of log p + noise up to a constant, so the first token is a sample of the truncated
    softmax at this temperature (the Gumbel-max trick), and the ids in order are a sample without replacement.

    Args:
        logits: (V,) float32. NaN and -inf are never chosen; +inf leaves out everything else.
        seed: 0 <= seed < 2^64, key of the noise.
        position: absolute position of the token that is chosen.
        temperature: 0 or less means score = logit, without noise. Ties go to the lower id.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the shortest prefix of most likely tokens with this mass; 1 keeps all.
        min_p: keep tokens at least this likely relative to the most likely one; 0 keeps all.
        typical_p: keep the locally typical set with this mass; 1 keeps all.
        count: how many to return at most.

    Returns:
        ids (m,) int32 and scores (m,) float64, m <= count.

    Raises:
        ValueError: no logit is above -inf, or count is below 1.
    """
    if count < 1:
        raise ValueError("count must be at least 1")
    ids = kept(logits, top_k, top_p, min_p, typical_p)
    if not len(ids):
        raise ValueError("no token has a logit above -inf")
    scores = logits[ids].astype(np.float64)
    if temperature > 0:
        scores = scores / temperature + gumbel(seed, position, ids)
    best = np.lexsort((ids, -scores))[:count]
    return ids[best], scores[best]
