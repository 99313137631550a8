"""The acceptance rule: what is emitted follows the target's exact law, and does not depend on the drafts.

A tiny language model with known probabilities, random and adversarial draft trees, and chi-square tests of
the joint law of the first tokens over many seeds.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from specx.backends.scripted import ScriptedModel
from specx.engine.sampling import Sampler
from specx.engine.settings import SamplingSettings
from specx.kernels._native import rank_tokens
from specx.kernels.reference import sampling as reference

SMALLEST_P = 1e-4
V = 6
CONTEXT = (3, 1, 4)
LENGTH = 3  # tokens whose joint law is tested

SETTINGS = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.4},
    "hot, top-k": {"temperature": 1.7, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 0.8, "min_p": 0.2},
    "typical": {"temperature": 1.0, "typical_p": 0.7},
    "all": {"temperature": 1.2, "top_k": 5, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.05},
}


def chosen(seed, name):
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return SamplingSettings(seed=seed, **{**off, **SETTINGS[name]})


def truncated_law(target, context, sampling):
    """Probabilities (V,) of the token after `context`: truncation first, then temperature."""
    logits = target.logits(context)
    kept = reference.kept(logits, sampling.top_k, sampling.top_p, sampling.min_p, sampling.typical_p)
    weights = np.zeros(V)
    weights[kept] = np.exp(logits[kept].astype(np.float64) / sampling.temperature)
    return weights / weights.sum()


def joint_law(target, sampling):
    """Probabilities (V, V, V) of the first three tokens after the context."""
    law = np.zeros((V,) * LENGTH)
    for first in range(V):
        for second in range(V):
            here = truncated_law(target, CONTEXT, sampling)[first]
            then = truncated_law(target, (*CONTEXT, first), sampling)[second]
            law[first, second] = here * then * truncated_law(target, (*CONTEXT, first, second), sampling)
    return law


def assert_follows(counts, law):
    """Chi-square, with the cells that expect fewer than five draws put together."""
    counts, expected = counts.ravel(), law.ravel() * counts.sum()
    assert not counts[expected == 0].any()
    large = expected >= 5
    observed = [*counts[large], counts[~large].sum()]
    wanted = [*expected[large], expected[~large].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, np.array(wanted) * (sum(observed) / sum(wanted))).pvalue > SMALLEST_P


class Trees:
    """Ways to draft a tree below the last token. Each gives (token, parent) pairs, parent -1 the root."""

    def __init__(self, target):
        self.target = target
        self.other = ScriptedModel(V, order=1, seed=99, sharpness=1.0)

    def none(self, context, position, sampling, rng):
        return []

    def chain(self, context, position, sampling, rng):
        return [(int(token), i - 1) for i, token in enumerate(rng.integers(0, V, 4))]

    def bushy(self, context, position, sampling, rng):
        # Duplicated siblings are allowed.
        return [(int(rng.integers(V)), int(rng.integers(-1, i))) for i in range(int(rng.integers(1, 12)))]

    def coupled(self, context, position, sampling, rng):
        """Children of a node are the top-2 of log q + G, with the target's own noise, two levels deep."""
        return self._best(self.other, context, position, sampling, 2)

    def right(self, context, position, sampling, rng):
        """The very tokens that the target will choose, the sampler's noise being no secret."""
        tree, context = [], list(context)
        for depth in range(3):
            (token, _), *_ = self._best(self.target, context, position + depth, sampling, 1, levels=1)
            tree.append((token, depth - 1))
            context.append(token)
        return tree

    def wrong(self, context, position, sampling, rng):
        """Anything but the token that the target will choose."""
        (right, _), *_ = self._best(self.target, context, position, sampling, 1, levels=1)
        return [(token, -1) for token in range(V) if token != right]

    def lucky(self, context, position, sampling, rng):
        """Drafts only where the target is about to choose an unlikely token."""
        (right, _), *_ = self._best(self.target, context, position, sampling, 1, levels=1)
        unlikely = self.target.probabilities(context)[right] < 0.2
        return self.right(context, position, sampling, rng) if unlikely else []

    def _best(self, model, context, position, sampling, count, levels=2):
        truncation = (sampling.top_k, sampling.top_p, sampling.min_p, sampling.typical_p)
        tree, level = [], [(-1, list(context))]
        for depth in range(levels):
            below = []
            for parent, path in level:
                ids, _ = rank_tokens(
                    model.logits(path),
                    sampling.seed,
                    position + depth,
                    sampling.temperature,
                    *truncation,
                    count,
                )
                for token in ids.tolist():
                    tree.append((token, parent))
                    below.append((len(tree) - 1, [*path, token]))
            level = below
        return tree


KINDS = ("none", "chain", "bushy", "coupled", "right", "wrong", "lucky")


def generate(target, trees, kind, sampling, n, seed=0):
    """At least n tokens after CONTEXT, verifying trees of this kind ("any": a random kind each time)."""
    rng = np.random.default_rng(seed)
    cache = target.open()
    cache.prefill(CONTEXT[:-1])
    sampler = Sampler(sampling, V)
    sampler.begin(CONTEXT)
    emitted = []
    while len(emitted) < n:
        context = [*CONTEXT, *emitted]
        way = KINDS[rng.integers(len(KINDS))] if kind == "any" else kind
        tree = getattr(trees, way)(context, len(context), sampling, rng)
        tokens = np.array([context[-1], *(token for token, _ in tree)], np.int32)
        parents = np.array([-1, *(parent + 1 for _, parent in tree)], np.int32)
        output = cache.forward(tokens, parents)
        rows = [0]
        while True:
            token = sampler.sample(output.logits[rows[-1]], len(CONTEXT) + len(emitted))
            sampler.accept(token)
            emitted.append(token)
            below = np.flatnonzero((parents == rows[-1]) & (tokens == token))
            below = below[below > 0]
            if not len(below):
                break
            rows.append(int(below[0]))
        cache.keep(rows)
    cache.close()
    return emitted


@pytest.fixture
def target():
    return ScriptedModel(V, order=2, seed=1, sharpness=1.3, max_leaves=16)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_token_follows_the_law(target, name):
    logits = target.logits(CONTEXT)
    draws = 20_000
    tokens = [Sampler(chosen(seed, name), V).sample(logits, 17) for seed in range(draws)]
    law = truncated_law(target, CONTEXT, chosen(0, name))
    assert_follows(np.bincount(tokens, minlength=V), law)
    sampler = Sampler(chosen(5, name), V)
    tokens = [sampler.sample(logits, position) for position in range(draws)]
    assert_follows(np.bincount(tokens, minlength=V), law)


@pytest.mark.parametrize("kind", [*KINDS, "any"])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_trees_follow_the_joint_law(target, kind, name):
    trees = Trees(target)
    counts = np.zeros((V,) * LENGTH)
    for seed in range(6000):
        counts[tuple(generate(target, trees, kind, chosen(seed, name), LENGTH, seed)[:LENGTH])] += 1
    assert_follows(counts, joint_law(target, chosen(0, name)))


def test_the_chi_square_can_fail(target):
    # Emitting the draft whenever it is likely enough, as a careless rule would, is noticed.
    rng = np.random.default_rng(0)
    law = truncated_law(target, CONTEXT, chosen(0, "plain"))
    drafts = rng.choice(V, 5000, p=np.full(V, 1 / V))
    tokens = [
        draft if law[draft] > 0.15 else Sampler(chosen(seed, "plain"), V).sample(target.logits(CONTEXT), 3)
        for seed, draft in enumerate(drafts)
    ]
    with pytest.raises(AssertionError):
        assert_follows(np.bincount(tokens, minlength=V), law)


@pytest.mark.parametrize("name", SETTINGS)
def test_text_does_not_depend_on_the_drafts(target, name):
    trees = Trees(target)
    for seed in range(3):
        sampling = chosen(seed, name)
        alone = generate(target, trees, "none", sampling, 40)[:40]
        for kind in (*KINDS[1:], "any"):
            assert generate(target, trees, kind, sampling, 40, seed)[:40] == alone


def test_text_does_not_depend_on_the_drafts_with_penalties_and_greedy(target):
    trees = Trees(target)
    for temperature in (0.0, 0.9):
        sampling = SamplingSettings(
            seed=3,
            temperature=temperature,
            top_k=0,
            repeat_penalty=1.4,
            repeat_last_n=5,
            frequency_penalty=0.3,
        )
        alone = generate(target, trees, "none", sampling, 40)[:40]
        assert len(set(alone)) > 2
        for seed in range(6):
            assert generate(target, trees, "any", sampling, 40, seed)[:40] == alone


def test_right_drafts_are_accepted(target):
    assert (
        len(generate(target, Trees(target), "right", chosen(4, "plain"), 1)) == 4
    )  # one step: three drafted
