"""The sampler: penalties, bias, greedy ties, margins, and what a constraint means."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specx.backends.base import Output
from specx.backends.errors import GrammarError, ModelError, UsageError
from specx.engine.decode import evidence_of
from specx.engine.sampling import Sampler
from specx.engine.settings import SamplingSettings
from specx.kernels._native import Draft, gumbel
from specx.kernels.reference import sampling as reference

SMALLEST_P = 1e-4
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def plain(seed=0, **changes):
    return SamplingSettings(seed=seed, **{**OFF, **changes})


class OnlyThese:
    """Allows a fixed set of tokens, and remembers what it was asked and told."""

    def __init__(self, tokens):
        self.tokens = list(tokens)
        self.asked = []
        self.accepted = []

    def allowed(self, ids):
        self.asked.append(len(ids))
        return np.isin(ids, self.tokens)

    def accept(self, token):
        self.accepted.append(token)


def penalised(logits, window, chosen):
    """llama.cpp's rule, one token at a time."""
    row = logits.copy()
    for token, count in Counter(window).items():
        repeat = np.float32(chosen.repeat_penalty)
        row[token] = row[token] / repeat if row[token] > 0 else row[token] * repeat
        row[token] -= np.float32(count) * np.float32(chosen.frequency_penalty)
        row[token] -= np.float32(chosen.presence_penalty)
    return row


@given(
    st.lists(st.integers(0, 9), max_size=30),
    st.lists(st.integers(0, 9), max_size=30),
    st.sampled_from([-1, 0, 1, 3, 8, 64]),
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([0.0, 0.4, -0.5]),
    st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=200)
def test_penalties_against_brute_force(context, emitted, last_n, repeat, frequency, presence):
    chosen = plain(
        temperature=0.0,
        repeat_last_n=last_n,
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    rng = np.random.default_rng(1)
    sampler = Sampler(chosen, 10)
    sampler.begin(context)
    history = list(context)
    for position, token in enumerate(emitted):
        logits = rng.normal(0, 1, 10).astype(np.float32)
        window = history if last_n < 0 else history[len(history) - min(last_n, len(history)) :]
        before = logits.copy()
        assert sampler.sample(logits, position) == np.argmax(penalised(logits, window, chosen))
        np.testing.assert_array_equal(logits, before)
        sampler.accept(token)
        history.append(token)


def test_beginning_again_forgets_the_penalties():
    sampler = Sampler(plain(temperature=0.0, presence_penalty=5.0), 3)
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    sampler.begin([0])
    assert sampler.sample(logits, 0) == 1
    sampler.begin([])
    assert sampler.sample(logits, 0) == 0


BEYOND = 1e39  # more than single precision holds


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty", "repeat_penalty"])
def test_penalties_at_the_limit_of_single_precision(name, sign):
    smallest = {"repeat_penalty": 1e-50}.get(name, -BEYOND)
    sampler = Sampler(plain(temperature=0.0, **{name: BEYOND if sign > 0 else smallest}), 4)
    sampler.begin([0, 0, 0])
    logits = np.array([2.0, 1.0, 0.5, -np.inf], np.float32)
    penalised_more = sign > 0
    if name == "repeat_penalty":  # dividing a positive logit by nearly nothing makes it the largest
        assert sampler.sample(logits, 0) == (1 if penalised_more else 0)
        assert sampler.sample(-np.abs(logits), 0) == (2 if penalised_more else 0)
    else:
        assert sampler.sample(logits, 0) == (1 if penalised_more else 0)
    sampler.begin([0, 1, 2, 3])  # all of them: none is forbidden, and the last stays so
    assert sampler.sample(logits, 0) in (0, 1, 2)


def test_penalties_that_pull_both_ways_leave_a_number():
    chosen = plain(temperature=0.0, repeat_penalty=3e38, frequency_penalty=-3e38, presence_penalty=3e38)
    sampler = Sampler(chosen, 2)
    sampler.begin([0, 0, 0])
    assert sampler.sample(np.array([-2.0, 1.0], np.float32), 0) in (0, 1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 5e-324, 1e-310, 1e-300, 1e-240, 1e-60])
def test_a_tiny_temperature_is_greedy(temperature):
    rng = np.random.default_rng(5)
    for position in range(50):
        logits = rng.normal(0, 10, 300).astype(np.float32)
        assert Sampler(plain(9, temperature=temperature), 300).sample(logits, position) == np.argmax(logits)


def test_a_huge_temperature_keeps_choosing_among_the_kept_tokens():
    sampler = Sampler(plain(9, temperature=1e308, top_k=3), 300)
    logits = np.arange(300, dtype=np.float32)
    assert {sampler.sample(logits, position) for position in range(100)} == {297, 298, 299}


@pytest.mark.parametrize("top_k", [-5, 0, 10**30])
def test_a_top_k_that_keeps_everything(top_k):
    logits = np.random.default_rng(2).normal(0, 1, 500).astype(np.float32)
    for position in range(20):
        everything = Sampler(plain(7), 500).sample(logits, position)
        assert Sampler(plain(7, top_k=top_k), 500).sample(logits, position) == everything


def test_a_logit_bias_at_the_limits():
    logits = np.array([1.0, 0.5, -np.inf], np.float32)
    for bias in (BEYOND, np.inf):
        assert Sampler(plain(temperature=0.0, logit_bias={1: bias}), 3).sample(logits, 0) == 1
        assert Sampler(plain(temperature=0.0, logit_bias={0: -bias}), 3).sample(logits, 0) == 1
        assert Sampler(plain(temperature=0.0, logit_bias={2: bias}), 3).sample(logits, 0) == 0
    with pytest.raises(UsageError, match="token 4294967296"):
        Sampler(plain(logit_bias={2**32: 1.0}), 3)


def test_logit_bias():
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    assert Sampler(plain(temperature=0.0, logit_bias={2: 5.0}), 3).sample(logits, 0) == 2
    forbidding = plain(temperature=5.0, logit_bias={0: -np.inf, 2: -np.inf})
    assert {Sampler(forbidding, 3).sample(logits, position) for position in range(50)} == {1}
    with pytest.raises(UsageError, match="token 3"):
        Sampler(plain(logit_bias={3: 1.0}), 3)
    everything = plain(logit_bias={0: -np.inf, 1: -np.inf, 2: -np.inf})
    with pytest.raises(ModelError):
        Sampler(everything, 3).sample(logits, 0)


@pytest.mark.parametrize("margins", [False, True])
def test_greedy_is_argmax_with_ties_to_the_lower_id(margins):
    rng = np.random.default_rng(0)
    for seed in range(50):
        logits = rng.integers(0, 6, 200).astype(np.float32)
        logits[rng.integers(200)] = -np.inf
        sampler = Sampler(plain(seed, temperature=0.0), 200, margins=margins)
        assert sampler.sample(logits, seed) == np.argmax(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_never_wins(temperature):
    logits = np.array([0.0, np.nan, 2.0, np.nan], np.float32)
    sampler = Sampler(plain(temperature=temperature), 4)
    assert {sampler.sample(logits, position) for position in range(100)} <= {0, 2}
    with pytest.raises(ModelError):
        sampler.sample(np.full(4, np.nan, np.float32), 0)


def test_token_depends_on_seed_and_position_only():
    logits = np.random.default_rng(2).normal(0, 1, 500).astype(np.float32)
    forward = [Sampler(plain(7), 500).sample(logits, position) for position in range(40)]
    one = Sampler(plain(7), 500)
    backward = [one.sample(logits, position) for position in reversed(range(40))]
    assert backward[::-1] == forward
    other = Sampler(plain(8), 500)
    assert [other.sample(logits, position) for position in range(40)] != forward
    negative = Sampler(plain(-1), 500)
    assert 0 <= negative.sample(logits, 0) < 500


def test_margin_is_the_lead_over_the_runner_up():
    logits = np.random.default_rng(3).normal(0, 1, 300).astype(np.float32)
    for position in range(20):
        sampler = Sampler(plain(5, temperature=0.7), 300, margins=True)
        winner = sampler.sample(logits, position)
        scores = logits / 0.7 + gumbel(5, position, np.arange(300, dtype=np.int32))
        runner_up, best = np.sort(scores)[-2:]
        assert winner == np.argmax(scores)
        assert sampler.last_margin == pytest.approx(best - runner_up)
    alone = Sampler(plain(5, top_k=1), 300, margins=True)
    alone.sample(logits, 0)
    assert alone.last_margin == np.inf


def test_a_seed_is_required():
    with pytest.raises(ValueError, match="seed"):
        Sampler(SamplingSettings(), 3)


def exact_law(logits, allowed, temperature, **truncation):
    """Probabilities (V,) of the truncated distribution restricted to the allowed tokens; if that is empty, of
    the truncation of the allowed tokens."""
    kept = reference.kept(logits, *(truncation[name] for name in ("top_k", "top_p", "min_p", "typical_p")))
    kept = kept[np.isin(kept, allowed)]
    if not len(kept):
        masked = np.full_like(logits, -np.inf)
        masked[allowed] = logits[allowed]
        kept = reference.kept(masked, *(truncation[n] for n in ("top_k", "top_p", "min_p", "typical_p")))
    weights = np.zeros(len(logits))
    weights[kept] = np.exp((logits[kept].astype(np.float64) - logits.max()) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("allowed", "changes"),
    [
        (range(0, 30, 3), {}),
        (range(0, 30, 3), {"top_k": 8}),
        (range(0, 30, 2), {"top_p": 0.8, "min_p": 0.02}),
        (range(20, 30), {"top_k": 5}),  # often none of the kept tokens
        (range(22, 30), {"top_k": 3, "typical_p": 0.7}),
    ],
)
@pytest.mark.parametrize("margins", [False, True])
def test_constrained_law(allowed, changes, margins):
    rng = np.random.default_rng(4)
    logits = np.sort(rng.normal(0, 1.5, 30))[::-1].astype(np.float32)
    truncation = {**OFF, **changes}
    law = exact_law(logits, list(allowed), 0.9, **truncation)
    draws = 6000
    sampler = Sampler(plain(1, temperature=0.9, **changes), 30, OnlyThese(allowed), margins=margins)
    counts = np.bincount([sampler.sample(logits, position) for position in range(draws)], minlength=30)
    assert not counts[law == 0].any()
    possible = law > 0
    assert stats.chisquare(counts[possible], draws * law[possible]).pvalue > SMALLEST_P


def test_constraint_is_asked_about_few_tokens_first():
    logits = np.zeros(1000, np.float32)
    logits[5] = 50
    easy = OnlyThese([5])
    assert Sampler(plain(), 1000, easy).sample(logits, 0) == 5
    assert easy.asked == [1]
    rare = OnlyThese([9])
    assert Sampler(plain(), 1000, rare).sample(logits, 0) == 9
    assert rare.asked == [1, 64, 1000]
    cut_off = OnlyThese([9])
    assert Sampler(plain(top_k=2), 1000, cut_off).sample(logits, 0) == 9
    assert cut_off.asked == [1, 2, 1000]


def test_constraint_that_allows_nothing():
    logits = np.zeros(20, np.float32)
    with pytest.raises(GrammarError):
        Sampler(plain(), 20, OnlyThese([])).sample(logits, 0)
    logits[3] = -np.inf  # the model cannot say the only token that is allowed
    with pytest.raises(GrammarError):
        Sampler(plain(), 20, OnlyThese([3])).sample(logits, 0)


def test_greedy_with_a_constraint_takes_the_most_likely_allowed_token():
    logits = np.random.default_rng(6).normal(0, 1, 400).astype(np.float32)
    allowed = list(range(0, 400, 7))
    sampler = Sampler(plain(temperature=0.0, top_k=40), 400, OnlyThese(allowed))
    assert sampler.sample(logits, 0) == max(allowed, key=lambda token: logits[token])


def test_constraint_follows_the_emitted_tokens():
    constraint = OnlyThese([1])
    sampler = Sampler(plain(), 4, constraint)
    sampler.begin([3, 3])
    sampler.accept(1)
    sampler.accept(2)
    assert constraint.accepted == [1, 2]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.7, 1.5]), st.sampled_from([0, 3]))
def test_a_draft_is_descended_at_once_as_token_by_token(seed, temperature, top_k):
    random, vocab = np.random.default_rng(seed), 6
    n = int(random.integers(0, 24))
    parents, tokens = [], []
    for i in range(n):
        parent = int(random.integers(-1, i))
        taken = [token for token, above in zip(tokens, parents, strict=True) if above == parent]
        parents.append(parent)
        tokens.append(int(random.choice([t for t in range(40) if t not in taken][: vocab + len(taken)])))
    probs = np.linspace(1, 0.1, n).astype(np.float32)
    draft = Draft(np.array(tokens, np.int32), np.array(parents, np.int32), probs, np.zeros(n, np.uint8))
    output = Output(random.normal(0, 2, (n + 1, vocab)).astype(np.float32))
    stops = frozenset(random.choice(vocab, 2, replace=False).tolist())
    sampler = Sampler(plain(seed, temperature=temperature, top_k=top_k), vocab)
    assert sampler.independent
    chosen, rows, row = [], [], 0
    nodes = {
        (parent + 1, token): i + 1 for i, (parent, token) in enumerate(zip(parents, tokens, strict=True))
    }
    while row is not None:
        chosen.append(sampler.sample_row(output, row, 50 + len(chosen)))
        rows.append(row)
        row = None if chosen[-1] in stops else nodes.get((row, chosen[-1]))
    assert sampler.descend(output, draft, 50, stops) == (chosen, rows)
    assert draft.rows_along(chosen[: len(rows) - 1]) == rows
    assert [each.tolist() for each in draft.tree(7)] == [[7, *tokens], [-1, *(p + 1 for p in parents)]]


def test_what_cannot_be_descended():
    sampler, draft = Sampler(plain(), 3), Draft.of_chain([1], [0.5])
    with pytest.raises(ModelError, match="no token"):
        sampler.descend(Output(np.full((2, 3), -np.inf, np.float32)), draft, 0, frozenset())
    with pytest.raises(ValueError, match="path"):
        draft.rows_along([2])
    for more in ({"constraint": OnlyThese([1])}, {"margins": True}):
        assert not Sampler(plain(), 3, **more).independent
    assert not Sampler(plain(logit_bias={1: 2.0}), 3).independent
    assert not Sampler(plain(presence_penalty=0.5), 3).independent


def test_margin_of_two_infinite_scores_is_that_of_a_tie():
    sampler = Sampler(plain(5, temperature=0.0), 4, margins=True)
    assert sampler.sample(np.array([0, np.inf, -np.inf, np.inf], np.float32), 7) == 1
    assert sampler.last_margin == 0.0


@pytest.mark.parametrize(
    ("logits", "logprob", "possible"),
    [
        ([0.0, np.nan, 0.0, -np.inf], -np.log(2), 2),
        ([np.inf, 5.0, np.nan, np.inf], -np.log(2), 2),
        ([3.4e38, -3.4e38, 1.0, np.nan], 0.0, 1),
        ([-np.inf, np.nan, -np.inf, -np.inf], -np.log(4), 4),
    ],
)
def test_evidence_of_damaged_logits_is_of_what_can_be_chosen(logits, logprob, possible):
    evidence = evidence_of(0, np.array(logits, np.float32))
    assert evidence.logprob == pytest.approx(logprob)
    told = evidence.logits.astype(np.float64) - evidence.total
    assert np.exp(told).sum() == pytest.approx(1.0)
    assert np.count_nonzero(np.exp(told)) == possible
