"""The native sampler against its NumPy reference, and the noise against what Gumbel noise must be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specx.kernels._native import Draft, LogitRows, gumbel, rank_tokens
from specx.kernels.reference import sampling as reference

SMALLEST_P = 1e-4

TOP_K = (0, 1, 40, 300)
TOP_P = (1.0, 0.95, 0.5, 0.0)
MIN_P = (0.0, 0.05, 0.5)
TYPICAL_P = (1.0, 0.9, 0.2)


def assert_same(logits, *arguments):
    ids, scores = rank_tokens(logits, *arguments)
    expected_ids, expected_scores = reference.rank_tokens(logits, *arguments)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-14)
    assert ids.dtype == np.int32
    assert scores.dtype == np.float64
    rows = LogitRows(np.stack((logits[::-1], logits)))
    for _ in range(2):  # what is kept of a row does not change the answer
        again = rows.rank(1, *arguments)
        np.testing.assert_array_equal(again[0], ids)
        np.testing.assert_array_equal(again[1], scores)
        assert rows.argmax(1) == rank_tokens(logits, 0, 0, 0.0, 0, 1.0, 0.0, 1.0, 1)[0][0]


def random_logits(rng, n, kind):
    logits = {
        "usual": lambda: rng.normal(0, 3, n),
        "flat": lambda: rng.normal(0, 0.05, n),
        "peaked": lambda: rng.normal(0, 12, n),
        "ties": lambda: rng.integers(-3, 4, n),
        "equal": lambda: np.full(n, 1.5),
        "huge": lambda: rng.normal(0, 1e37, n),
        "forbidden": lambda: np.where(rng.random(n) < 0.7, -np.inf, rng.normal(0, 2, n)),
        "broken": lambda: np.where(rng.random(n) < 0.3, np.nan, rng.normal(0, 2, n)),
        "infinite": lambda: np.where(rng.random(n) < 0.01, np.inf, rng.normal(0, 2, n)),
    }[kind]().astype(np.float32)
    logits[n // 2] = 2.5  # at least one that can be chosen
    return logits


KINDS = ("usual", "flat", "peaked", "ties", "equal", "huge", "forbidden", "broken", "infinite")


def test_philox_known_answers():
    # Published with Random123, the authors' implementation.
    assert reference.philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert reference.philox4x32((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answer = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert reference.philox4x32(counter, (0xA4093822, 0x299F31D0)) == answer


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 5, 2**32 + 7])
def test_noise_equals_the_reference(seed, position):
    ids = np.array([0, 1, 2, 3, 4, 5, 49151, 262143, 2**31 - 1], np.int32)
    np.testing.assert_allclose(gumbel(seed, position, ids), reference.gumbel(seed, position, ids), rtol=1e-14)


def test_noise_of_a_token_does_not_depend_on_the_others():
    everything = gumbel(3, 11, np.arange(1000, dtype=np.int32))
    some = np.array([999, 0, 7, 7, 512, 6], np.int32)
    np.testing.assert_array_equal(gumbel(3, 11, some), everything[some])
    assert len(np.unique(everything)) == 1000


def test_noise_is_gumbel_distributed():
    noise = gumbel(20, 30, np.arange(200_000, dtype=np.int32))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.03)
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > SMALLEST_P


def test_noise_is_independent_across_seeds_positions_and_ids():
    ids = np.arange(50_000, dtype=np.int32)
    here = gumbel(1, 100, ids)
    others = [gumbel(2, 100, ids), gumbel(1 + 2**32, 100, ids), gumbel(1, 101, ids), gumbel(1, 100, ids + 1)]
    others.append(gumbel(1, 100 + 2**32, ids))
    for other in others:
        assert stats.pearsonr(here, other).pvalue > SMALLEST_P
        # Large noise decides, so look at the tails too.
        both = np.count_nonzero((here > 3) & (other > 3))
        expected = len(ids) * (1 - np.exp(-np.exp(-3.0))) ** 2
        assert stats.poisson.cdf(both, expected) > SMALLEST_P
        assert stats.poisson.sf(both - 1, expected) > SMALLEST_P


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for top_k, top_p, min_p, typical_p in itertools.product(TOP_K, TOP_P, MIN_P, TYPICAL_P):
        n = int(rng.integers(1, 700))
        temperature = float(rng.choice([0.0, 0.3, 1.0, 5.0]))
        count = int(rng.choice([1, 2, 64, n]))
        seed = int(rng.integers(2**63))
        assert_same(random_logits(rng, n, kind), seed, 9, temperature, top_k, top_p, min_p, typical_p, count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", [(0, 1.0, 0.0, 1.0), (0, 0.99, 0.0, 1.0), (0, 1.0, 1e-5, 1.0)])
def test_large_vocabularies(kind, truncation):
    # More kept tokens than the native code lists: it scans the row instead.
    rng = np.random.default_rng(5)
    for n, temperature, count in ((4999, 1.0, 1), (5000, 0.5, 2), (4097, 30.0, 64), (4608, 0.0, 3)):
        assert_same(random_logits(rng, n, kind), 77, 2**33, temperature, *truncation, count)


def test_scanning_a_row_finds_the_best_of_many_seeds():
    # The scan skips nearly every token by a bound; a wrong bound would miss a winner now and then.
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, 2000).astype(np.float32)
    ids = np.arange(2000, dtype=np.int32)
    for temperature in (0.2, 1.0, 4.0):
        for seed in range(1500):
            scores = logits / np.float64(temperature) + gumbel(seed, 0, ids)
            best, _ = rank_tokens(logits, seed, 0, temperature, 0, 1.0, 0.0, 1.0, 3)
            np.testing.assert_array_equal(best, np.argsort(-scores)[:3])


@given(
    st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True) | st.integers(-2, 2).map(float),
        min_size=1,
        max_size=90,
    ),
    st.sampled_from(TOP_K),
    st.sampled_from(TOP_P),
    st.sampled_from(MIN_P),
    st.sampled_from([0.0, 0.01, 1.0, 100.0]),
    st.integers(1, 100),
)
@settings(max_examples=300)
def test_any_logits(values, top_k, top_p, min_p, temperature, count):
    logits = np.array(values, np.float32)
    arguments = (1, 2, temperature, top_k, top_p, min_p, 1.0, count)
    if not (logits > -np.inf).any():
        with pytest.raises(ValueError, match="-inf"):
            rank_tokens(logits, *arguments)
    else:
        assert_same(logits, *arguments)


def test_ties_go_to_the_lower_id_without_noise():
    logits = np.zeros(1000, np.float32)
    logits[[700, 20, 301]] = 4
    ids, scores = rank_tokens(logits, 0, 0, 0.0, 0, 1.0, 0.0, 1.0, 5)
    assert ids.tolist() == [20, 301, 700, 0, 1]
    assert scores.tolist() == [4, 4, 4, 0, 0]


def test_min_p_comes_after_top_p_of_the_whole_mass():
    # Half of the mass lies in tokens that min-p leaves out; top-p must count it all the same.
    logits = np.log(np.array([0.3, 0.2, *[0.5 / 5000] * 5000])).astype(np.float32)
    ids, _ = rank_tokens(logits, 0, 0, 1.0, 0, 0.35, 0.05, 1.0, 10)
    assert sorted(ids.tolist()) == [0, 1]
    ids, _ = rank_tokens(logits, 0, 0, 1.0, 0, 0.25, 0.05, 1.0, 10)
    assert ids.tolist() == [0]


def test_misuse():
    row = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="count"):
        rank_tokens(row, 0, 0, 1.0, 0, 1.0, 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="-inf"):
        rank_tokens(np.full(4, np.nan, np.float32), 0, 0, 1.0, 0, 1.0, 0.0, 1.0, 1)
    with pytest.raises(ValueError, match="-inf"):
        rank_tokens(np.empty(0, np.float32), 0, 0, 1.0, 0, 1.0, 0.0, 1.0, 1)
    with pytest.raises(TypeError):
        rank_tokens(row.astype(np.float64), 0, 0, 1.0, 0, 1.0, 0.0, 1.0, 1)
    with pytest.raises(TypeError):
        rank_tokens(row, -1, 0, 1.0, 0, 1.0, 0.0, 1.0, 1)


def test_the_row_may_be_read_only():
    row = np.arange(5, dtype=np.float32)
    row.flags.writeable = False
    assert rank_tokens(row, 0, 0, 0.0, 0, 1.0, 0.0, 1.0, 1)[0].tolist() == [4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_along_a_draft_end_before_a_row_without_any(temperature):
    rows = LogitRows(np.array([[-np.inf, 1.0], [np.nan, -np.inf]], np.float32))
    draft = Draft.of_chain([1], [0.5])
    settings_ = 5, 3, temperature, 0, 1.0, 0.0, 1.0
    assert rows.descend(draft, frozenset(), *settings_) == ([1], [0])
