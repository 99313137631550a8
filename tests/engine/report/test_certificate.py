"""The certificate: what parts two texts is found and judged, and batch shapes are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.errors import UsageError
from specx.backends.scripted import ScriptedCache, ScriptedModel, ScriptedVocab, SimulatedClock
from specx.backends.store import Store
from specx.drafters.base import Drafter, Drafting
from specx.engine.cost.identity import DEPTHS, SPAN, WIDTHS, Identity, identity_text, measure_identity
from specx.engine.decode import Evidence
from specx.engine.learned.knowledge import Learned
from specx.engine.report.certificate import (
    PROMPTS,
    Comparison,
    compare_drafters,
    compare_together,
    examine,
    parting,
    with_longer,
)
from specx.engine.session import Result, Session
from specx.engine.settings import Asked, SamplingSettings

V = 64
SCRIPT = [int(token) for token in np.random.default_rng(7).integers(1, 42, 40)]
FLAT = {n: 10.0 + n / 100 for n in range(1, 65)}
TEXT = (SCRIPT * 20)[: max(DEPTHS) + SPAN]


class ShapedCache(ScriptedCache):
    """Notices when its cells are out of order, and goes back no further than its model says."""

    disordered = False

    def keep(self, rows):
        super().keep(rows)
        self.disordered |= list(rows) != list(range(len(rows)))

    def reusable(self, length):
        reached, reach = super().reusable(length), self.model.reach
        return 0 if reach is not None and reached < self.length - reach else reached

    def rewind(self, length):
        super().rewind(length)
        self.disordered = False


class Shaped(ScriptedModel):
    """Adds to the logits of a call what `shape(width, length)` says, and `branch` once the cells of the cache
    are out of order."""

    def __init__(self, shape=lambda _width, _length: 0.0, branch=0.0, reach=None, **options):
        self.clock = SimulatedClock()
        law = {"vocab_size": V, "script": SCRIPT, "peak": 0.6, **options}
        super().__init__(**law, step_costs=FLAT, clock=self.clock, cache_class=ShapedCache)
        self.shape, self.branch, self.reach = shape, branch, reach

    def forward(self, trees, want=Want.LOGITS):
        outputs = super().forward(trees, want)
        pattern = np.sin(np.arange(self.vocab.size) * 7.3).astype(np.float32)
        for tree, output in zip(trees, outputs, strict=True):
            added = self.shape(len(tree), tree.cache.length) + self.branch * tree.cache.disordered
            output.logits[:] += np.float32(added) * pattern
        return outputs


def identity_of(tokens=TEXT, *, depths=DEPTHS, **options):
    return measure_identity(Shaped(**options).open(), tokens, depths=depths)


def test_all_shapes_alike():
    cache = Shaped().open()
    told = []
    identity = measure_identity(cache, TEXT, progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > len(identity.classes)
    assert identity == Identity((WIDTHS,), True, 0.0, DEPTHS)
    assert identity.exact_trees
    assert identity.widths == frozenset(WIDTHS)
    assert cache.length == 0


def test_widths_fall_into_classes():
    identity = identity_of(shape=lambda n, _length: 0.0 if n <= 3 else 0.01 if n <= 8 else 0.03)
    assert identity.classes == ((10, 12, 16, 24, 32, 64), (4, 5, 6, 7, 8), (1, 2, 3))
    assert identity.widths == frozenset({10, 12, 16, 24, 32, 64})
    assert identity.difference == pytest.approx(0.03, rel=0.02)
    assert not identity.exact_trees


def test_a_difference_at_one_depth_is_enough():
    # As one token at a time differs from llama.cpp's wider calls once the cache is long.
    identity = identity_of(shape=lambda n, length: 0.5 * (n == 1 and length >= 512))
    assert identity.classes == (WIDTHS[1:], (1,))
    assert identity.difference == pytest.approx(0.5, rel=0.02)
    only_shallow = identity_of(shape=lambda n, length: 0.5 * (n == 1 and length >= 512), depths=(64,))
    assert only_shallow.classes == (WIDTHS,)


def test_no_two_widths_alike():
    identity = identity_of(shape=lambda n, _length: n / 100)
    assert identity.classes == tuple((n,) for n in WIDTHS)
    assert identity.widths == frozenset({1})


def test_accepted_branches():
    identity = identity_of(branch=0.25)
    assert (identity.classes, identity.branches) == ((WIDTHS,), False)
    assert not identity.exact_trees
    assert 0.1 < identity.difference <= 0.25
    assert identity_of(branch=0.25, max_leaves=1).exact_trees  # there are none


def test_models_that_cannot_do_everything():
    same = identity_of(shape=lambda n, _length: 0.1 * (n > 4))
    assert identity_of(shape=lambda n, _length: 0.1 * (n > 4), reach=0) == same
    assert identity_of(can_rewind=False).classes == ((1,),)
    assert identity_of(max_width=5).classes == ((1, 2, 3, 4, 5),)
    assert identity_of(n_ctx=300).depths == (64, 220)  # the deepest there can be
    assert identity_of(n_ctx=70).depths == (0,)
    assert identity_of(TEXT[:100]).depths == (20,)


def test_there_is_text_for_every_depth():
    tokens = identity_text(ScriptedVocab(300))
    assert len(tokens) == max(DEPTHS) + SPAN


def test_an_identity_as_json():
    identity = Identity(((2, 3, 4), (1,)), False, 0.125, (64, 640))
    assert Identity.from_json(json.loads(json.dumps(identity.to_json()))) == identity
    whole = identity.to_json()
    for changed in (
        {},
        {**whole, "classes": []},
        {**whole, "classes": [[]]},
        {**whole, "classes": 3},
        {**whole, "classes": [["x"]]},
        {**whole, "difference": "much"},
        {**whole, "depths": None},
        {**whole, "depths": []},
        {key: value for key, value in whole.items() if key != "branches"},
    ):
        with pytest.raises((ValueError, TypeError, KeyError)):
            Identity.from_json(changed)


def test_an_identity_of_a_shorter_context_is_not_taken_for_that_of_a_longer_one():
    learned = Learned(Store(None), model_key="m", cost_key="c")
    settings = Asked(Path("scripted.gguf"), exact=True)
    late = {"shape": lambda n, length: 0.5 * (n == 1 and length >= 300), "vocab_size": 300}
    short = Session(Shaped(n_ctx=300, **late), settings, learned, name="short")
    assert short.plan.widths is None
    longer = Session(Shaped(n_ctx=4096, **late), settings, learned, name="long")
    assert 1 not in longer.plan.widths
    again = Session(Shaped(n_ctx=300, **late), settings, learned, name="short again")
    assert 1 not in again.plan.widths  # what is known of more depths serves fewer
    assert again.cache.length == 0


def session_of(model, kind=Session):
    learned = Learned(Store(None), model_key="m", cost_key="c")
    settings = Asked(Path("scripted.gguf"), drafter="suffix")
    session = kind(model, settings, learned, name="scripted", clock=model.clock)
    session.staircase.load_json({"0": {str(n): ms for n, ms in FLAT.items()}})
    return session


PROMPT_TOKENS = [SCRIPT * 2, SCRIPT[5:] + SCRIPT[:20]]


def compare(model, **options):
    return compare_drafters(session_of(model), PROMPT_TOKENS, n_predict=40, **options)


def test_identical_runs_are_exact():
    seen = []
    comparisons = compare(Shaped(), done=seen.append)
    assert seen == comparisons
    assert len(comparisons) == 2 * 3 * 3
    assert all(c.first_difference is None and c.explained(0.0) for c in comparisons)
    assert {c.drafter for c in comparisons} == {"suffix", "recycle", "auto"}
    assert all(c.tokens > 0 for c in comparisons)
    assert {(c.prompt, c.seed) for c in comparisons} == {(0, 1), (1, 2)}


def test_nothing_of_a_comparison_stays():
    session = session_of(Shaped())
    compare_drafters(session, PROMPT_TOKENS, n_predict=40)
    assert session.drafter_name == "suffix"
    assert len(session.drafter.inner.history()) == 0
    assert session.drafter.inner.calibration.counts.sum() == 0


class Careless(Drafter):
    """What another drafter drafts; the second token of the first step that has one is falsified."""

    def __init__(self, inner, wrong):
        self.inner, self.wrong, self.source_names = inner, wrong, inner.source_names

    def start(self, text):
        return CarelessDrafting(self.inner.start(text), text, self.wrong)


class CarelessDrafting(Drafting):
    def __init__(self, inner, text, wrong):
        self.inner, self.text, self.wrong = inner, text, wrong

    def propose(self, room, after=()):
        return self.inner.propose(room, after)

    def observe(self, seen):
        self.inner.observe(seen)
        if len(seen.tokens) > 1 and not self.wrong:
            self.wrong.append(self.text.position - len(seen.tokens) + 1)
            seen.tokens[1] = (seen.tokens[1] + 1) % V or 1

    def close(self):
        self.inner.close()


def test_a_wrong_token_is_found_and_not_explained():
    wrong = []

    class Tampered(Session):
        def set_drafter(self, name):
            super().set_drafter(name)
            self.drafter = Careless(self.drafter, wrong)

    session = session_of(Shaped(peak=0.95), Tampered)
    comparisons = compare_drafters(session, PROMPT_TOKENS, n_predict=40, temperatures=(0.0,))
    [different] = [c for c in comparisons if c.first_difference is not None]
    assert different.first_difference == wrong[0] - len(PROMPT_TOKENS[different.prompt])
    assert different.logit_difference == 0.0
    assert not different.explained(1e9)


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_a_difference_of_logits_is_found_and_measured(size):
    # Drafted steps see other logits, as with a kernel that is wrong for wide batches.
    comparisons = compare(Shaped(lambda n, _length: size * (n > 1), peak=0.3))
    different = [c for c in comparisons if c.first_difference is not None]
    assert different
    for comparison in different:
        assert 0 < comparison.logit_difference <= size * 1.01
        assert not comparison.explained(comparison.logit_difference / 2)
        if comparison.temperature > 0:
            assert comparison.explained(2 * size)
    greedy = [c for c in different if c.temperature == 0]
    assert all(c.explained(2 * size) for c in greedy)


class Mixing(Shaped):
    """Its logits depend on how many texts are computed at once."""

    def forward(self, trees, want=Want.LOGITS):
        outputs = super().forward(trees, want)
        for output in outputs if len(trees) > 1 else ():
            output.logits[:] += np.sin(np.arange(V) * 3.1).astype(np.float32)
        return outputs


@pytest.mark.parametrize("even", [True, False])
def test_texts_written_together_are_compared_with_each_alone(even):
    session = session_of(Shaped(even=even, max_texts=5, max_leaves=1))
    prompts = with_longer(PROMPT_TOKENS, 500)
    assert len(prompts) == 2 * len(PROMPT_TOKENS) - 1
    seen = []
    found = compare_together(session, prompts, n_predict=20, done=seen.append)
    assert seen == found and len(found) == 2 * 3 * len(prompts)
    assert {c.drafter for c in found} == {"auto, 5 together"}
    assert all(c.first_difference is None and c.tokens > 0 for c in found)
    assert session.drafter_name == "suffix"  # as before


def test_what_the_company_changes_is_found():
    found = compare_together(session_of(Mixing(max_texts=4)), PROMPT_TOKENS, n_predict=30)
    different = [c for c in found if c.first_difference is not None]
    assert different and not any(c.explained(0.0) for c in different)


def test_at_temperature_0_only_a_near_tie_can_be_overturned():
    near = Comparison(0, 0.0, 1, "auto", 10, first_difference=3, logit_difference=0.1, margin=0.15)
    clear = Comparison(0, 0.0, 1, "auto", 10, first_difference=3, logit_difference=0.1, margin=0.25)
    assert near.explained(0.1)
    assert not near.explained(0.05)
    assert not clear.explained(0.1)
    # Elsewhere a token can drop out of the truncated distribution, however far ahead it was.
    assert Comparison(0, 0.7, 1, "auto", 10, 3, 0.1, 5.0).explained(0.1)
    assert not Comparison(0, 0.7, 1, "auto", 10, 3, 0.0, 5.0).explained(0.1)


def evidence(*logits, margin=1.0):
    return Evidence(margin, np.arange(len(logits), dtype=np.int32), np.array(logits, np.float32), 0.0, 0.0)


def test_where_two_results_part():
    rows = [evidence(1.0, 2.0, margin=i) for i in range(4)]
    one = Result(tokens=[5, 6, 7], evidence=rows)
    assert parting(one, Result(tokens=[5, 6, 7], evidence=rows[:1])) is None
    other = [*rows[:1], evidence(1.0, 2.5), *rows[2:]]
    assert parting(one, Result(tokens=[5, 9, 9], evidence=other)) == (1, 0.5, 1)
    # One ends where the other goes on: why it ended is evidence, too.
    assert parting(one, Result(tokens=[5, 6], evidence=rows[:3])) == (2, 0.0, 2)
    assert parting(one, Result(tokens=[5, 6], evidence=rows[:2])) == (2, 0.0, 0.0)
    far = Evidence(1.0, np.array([70, 71], np.int32), np.zeros(2, np.float32), 0.0, 0.0)
    assert parting(one, Result(tokens=[4], evidence=[far])) == (0, float("inf"), 0)


def test_the_prompts_are_different_tasks():
    assert len(set(PROMPTS)) == len(PROMPTS) >= 5


def test_noise_of_the_context_widens_what_is_natural():
    noisy = Comparison(0, 0.7, 1, "auto", 10, 3, 0.9, 0.1, noise=0.5)
    assert noisy.explained(0.1)
    assert not Comparison(0, 0.7, 1, "auto", 10, 3, 9.0, 0.1, noise=0.5).explained(0.1)
    assert not noisy.explained(0.0)  # nothing is natural where every shape in use is identical


@pytest.mark.parametrize("leaves", [1, 16])
def test_noise_is_measured_by_reading_the_context_again(leaves):
    quiet = compare(
        Shaped(lambda n, _length: 0.5 * (n == 3), peak=0.3, max_leaves=leaves), temperatures=(0.0,)
    )
    apart = [c for c in quiet if c.first_difference is not None]
    assert all(c.noise == 0.0 for c in apart)
    model = Shaped(lambda n, length: 0.5 * (n > 1), peak=0.3, max_leaves=leaves)
    model.branch = 0.25
    apart = [c for c in compare(model, temperatures=(0.0, 0.7)) if c.first_difference is not None]
    assert apart
    assert all((0.1 < c.noise <= 0.25) == (leaves > 1) for c in apart)


@pytest.mark.parametrize(("added", "tie"), [(0.0, False), (0.05, False), (3.0, True)])
def test_how_firmly_plain_decoding_stands_by_a_token(added, tie):
    session = session_of(Shaped(branch=added))
    greedy = SamplingSettings(seed=1, temperature=0.0)
    margin, noise, near_tie = examine(session, SCRIPT[:10], greedy, 4)
    assert margin > 0.5  # the script goes on with probability 0.6, the runner-up has far less
    assert (noise == 0.0) == (added == 0.0)
    assert near_tie == tie
    with pytest.raises(UsageError, match="ends before"):
        examine(session_of(Shaped(n_ctx=16)), SCRIPT[:10], greedy, 40)
