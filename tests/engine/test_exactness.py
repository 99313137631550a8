"""Real models say the same with and without drafts, at every temperature.

Where the shapes of batches are not bit-identical on this machine, a text may part at a near-tie: then the
logits of the two runs differ there by no more than shapes make them differ. With `exact`, or where all shapes
are identical, nothing may differ. One thread, because threads that wait for each other are no use on a busy
machine. Nothing here follows from what anything takes: the clock of these sessions ticks when it is read,
and to their plans all steps take what they were expected to.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.llama import kernels as ggml_device
from specx.drafters.base import Draft, Room
from specx.engine.offers import Asking, Reason
from specx.engine.report.certificate import PROMPTS, compare_drafters
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.setup.threads import governor_of
from specx.engine.text.template import ChatTemplate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from steady import Steady, steadied


class Eager(Steady):
    """Verifies a random part of what is proposed, whatever it may cost: all shapes up to eight tokens."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.rng = np.random.default_rng(4)

    def choose(self, jobs, facts):
        [job], [part] = jobs, (decision := super().choose(jobs, facts)).parts
        room = Room(min(7, facts.max_width - 1, facts.n_ctx - job.cache.length - 1), facts.max_leaves)
        draft = job.drafting.propose(room)
        draft = draft.head(int(self.rng.integers(len(draft) + 1)))
        return replace(decision, parts=(replace(part, draft=draft),))


class Reckless(Eager):
    """Has tokens verified that nobody proposed, behind those that somebody did."""

    def choose(self, jobs, facts):
        [part] = (decision := super().choose(jobs, facts)).parts
        more = facts.max_width - 1 - len(part.draft)
        ids = [*part.draft.tokens, *self.rng.integers(3, 300, int(self.rng.integers(more + 1)))]
        return replace(decision, parts=(replace(part, draft=Draft.of_chain(ids, [0.5] * len(ids))),))


class Curious(Asking):
    """Asks the draft model a random number of times, whatever that costs."""

    rng = np.random.default_rng(9)

    def weigh(self, *_args):
        return (1.0, Reason.GAIN) if self.rng.random() < 0.7 else (0.0, None)


def opened(model, *, plan=Steady, asking=Asking, **options):
    settings = {"n_ctx": 512, "threads": 1, "draft_max": 7, "store": False, **options}
    session = Session.open(Asked(model, **settings))
    # Drafts are worth their while up to a point, on any machine.
    width = session.model.facts.max_width
    steps = {"0": {str(n): 10.0 + n for n in range(1, width + 1)}}
    return steadied(session, steps, plan=plan, asking=asking)


def encoded(session, prompts):
    template = ChatTemplate(session.chat_template, bos=session.bos_text, eos=session.eos_text)
    texts = [template.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    return [template.tokenize(text, session.tokenize) for text in texts]


def compare(session, prompts, **options):
    comparisons = compare_drafters(session, encoded(session, prompts), n_predict=32, **options)
    assert sum(c.tokens for c in comparisons) > 8 * len(comparisons)
    return comparisons


def assert_explained(session, comparisons):
    identity = session.measure_identity()
    tolerance = 0.0 if identity.exact_trees else identity.difference
    assert [c for c in comparisons if not c.explained(tolerance)] == []


@pytest.fixture
def ours():
    if reason := ggml_device.unavailable():
        pytest.skip(f"specx's kernels: {reason}")
    if "generic" in ggml_device.describe():
        pytest.skip("specx multiplies on no instruction set of this machine")


def test_every_drafter_at_every_temperature(smollm2):
    with opened(smollm2, kernels="stock") as session:
        comparisons = compare(session, PROMPTS)
        assert len(comparisons) == 6 * 3 * 3
        assert_explained(session, comparisons)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_our_kernels_are_exact_at_every_width(smollm2, cache):
    with opened(smollm2, kernels="specx", type_k=cache, type_v=cache, plan=Eager) as session:
        identity = session.measure_identity()
        assert identity.exact_trees and identity.difference == 0.0 and 64 in identity.widths
        comparisons = compare(session, PROMPTS[:3], temperatures=(0.0, 1.0))
        assert [c for c in comparisons if c.first_difference is not None] == []


@pytest.mark.usefixtures("ours")
def test_our_kernels_are_exact_with_a_sliding_window(gemma3):
    with opened(gemma3, kernels="specx", plan=Eager) as session:
        assert session.measure_identity().exact_trees
        comparisons = compare(session, PROMPTS[3:5], drafters=("auto",), temperatures=(0.0, 0.7))
        assert [c for c in comparisons if c.first_difference is not None] == []


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["qwen35", "qwen35moe", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"])
def test_our_kernels_are_exact_with_recurrent_states(tiny_hybrids, name):
    """Most drafts are wrong, and some are right."""
    taken = [0, 0]
    with opened(tiny_hybrids[name], kernels="specx", plan=Reckless) as session:
        reckless, plain = session.plan, Steady(session.staircase, clock=session.clock)
        identity = session.measure_identity()
        assert identity.exact_trees and identity.difference == 0.0 and max(identity.widths) > 4
        prompt = session.tokenize("w1 w2 w3 and w1 w2", add_special=True, parse_special=False)
        for temperature in (0.0, 1.0):
            settings, texts = SamplingSettings(seed=8, temperature=temperature), {}
            for drafter in ("none", "auto"):
                session.set_drafter(drafter)
                session.plan = plain if drafter == "none" else reckless
                session.forget_conversation()
                generation = session.generate(prompt, settings, n_predict=250, ignore_eos=True)
                list(generation)
                texts[drafter], timings = generation.result.tokens, generation.result.timings
                taken[0] += timings.draft_n
                taken[1] += timings.draft_n_accepted
            assert texts["auto"] == texts["none"] and len(texts["auto"]) == 250
    assert taken[1] > 0 and taken[0] - taken[1] > 100


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["qwen35", "nemotron_h"])
def test_recurrent_states_of_several_texts(tiny_hybrids, name):
    with opened(tiny_hybrids[name], kernels="specx", texts=6) as session:
        settings = [SamplingSettings(seed=i, temperature=0.8) for i in range(6)]
        prompts = [
            session.tokenize(f"w{i} w{i + 1} w{i}" * i, add_special=True, parse_special=False)
            for i in range(1, 7)
        ]
        alone = []
        for prompt, setting in zip(prompts, settings, strict=True):
            session.forget_conversation()
            generation = session.generate(prompt, setting, n_predict=60)
            list(generation)
            alone.append(generation.result.tokens)
        session.forget_conversation()
        together = [session.generate(p, s, n_predict=60) for p, s in zip(prompts, settings, strict=True)]
        list(session.together(together))
        assert [generation.result.tokens for generation in together] == alone


def test_what_was_said_is_gone_on_with(tiny_hybrids):
    """A recurrent state cannot be cut; what is read on needs nothing to be read again."""
    with opened(tiny_hybrids["lfm2"], kernels="stock") as session:
        prompt = session.tokenize("w1 w2 w3", add_special=True, parse_special=False)
        first = session.generate(prompt, SamplingSettings(temperature=0), n_predict=30)
        list(first)
        longer = [*prompt, *first.result.tokens, *prompt]
        second = session.generate(longer, SamplingSettings(temperature=0), n_predict=4)
        list(second)
        assert second.result.timings.cached_n >= len(prompt) + 28


def test_another_answer_goes_on_from_the_prompt(tiny_hybrids):
    with opened(tiny_hybrids["qwen35"], kernels="stock") as session:
        prompt = session.tokenize("w1 w2 w3 " * 20, add_special=True, parse_special=False)
        texts, cached = [], []
        for asked in (prompt, prompt, [*prompt, *prompt[1:20]]):
            generation = session.generate(asked, SamplingSettings(temperature=0.7, seed=3), n_predict=30)
            list(generation)
            texts.append(generation.result.tokens)
            cached.append(generation.result.timings.cached_n)
        assert cached == [0, len(prompt) - 1, len(prompt) - 1]
        assert texts[0] == texts[1]


def test_random_trees(smollm2):
    with opened(smollm2, kernels="stock", plan=Eager) as session:
        comparisons = compare(session, PROMPTS[1:3], drafters=("recycle",), temperatures=(0.0, 1.0))
        assert_explained(session, comparisons)


def test_a_sliding_window(gemma3):
    with opened(gemma3, kernels="stock", plan=Eager) as session:
        comparisons = compare(session, PROMPTS[3:5], drafters=("auto",), temperatures=(0.0, 0.7))
        assert_explained(session, comparisons)


def test_exact_is_exact(smollm2):
    with opened(smollm2, kernels="stock", exact=True) as session:
        assert session.plan.widths is not None or session.measure_identity().exact_trees
        comparisons = compare(session, PROMPTS[:3], drafters=("auto",), temperatures=(0.0, 1.0))
        assert [c for c in comparisons if c.first_difference is not None] == []


def test_a_quantized_cache_is_exact_where_it_is_measured_to_be(smollm2):
    with opened(smollm2, kernels="stock", type_k="q8_0", type_v="q8_0", plan=Eager) as session:
        identity = session.measure_identity()
        comparisons = compare(session, PROMPTS[:2], drafters=("auto",), temperatures=(0.0, 0.7))
        assert_explained(session, comparisons)
        if identity.exact_trees:
            assert all(c.first_difference is None for c in comparisons)


def test_nothing_is_kept_without_a_store(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "cache"))
    with opened(smollm2, n_ctx=256) as session:
        tokens = encoded(session, PROMPTS[:1])[0]
        list(session.generate(tokens, SamplingSettings(seed=1, temperature=0.0), n_predict=4))
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("ours")
def test_the_number_of_threads_changes_nothing(smollm2):
    with opened(smollm2, kernels="specx", threads=2) as session:
        tokens, texts = encoded(session, PROMPTS[:1])[0], []
        governor = governor_of(session.model, session.setup)
        assert governor.threads == 2
        for turns in ((2,), (1, 2, 2)):
            numbers = itertools.cycle(turns)
            governor.observe = lambda _ratio, numbers=numbers: governor._use(next(numbers))
            session.plan.governor = governor
            session.forget_conversation()
            generation = session.generate(tokens, SamplingSettings(seed=4), n_predict=40)
            list(generation)
            texts.append(generation.result.tokens)
        assert texts[0] == texts[1] and len(texts[0]) == 40
    with opened(smollm2, kernels="stock", threads=2) as session:
        assert governor_of(session.model, session.setup) is None  # there it could change them


@pytest.mark.usefixtures("ours")
def test_a_draft_model_changes_nothing(smollm2, smollm2_q4_0):
    with opened(
        smollm2, asking=Curious, kernels="specx", draft=AskedModel(smollm2_q4_0, threads=1)
    ) as session:
        sources = []
        for prompt in encoded(session, PROMPTS[:1]):
            for sampling in (SamplingSettings(seed=3, temperature=0.0), SamplingSettings(seed=4)):
                texts = []
                for drafter in ("none", "auto", "model"):
                    session.set_drafter(drafter)
                    session.forget_conversation()
                    generation = session.generate(prompt, sampling, n_predict=40)
                    sources += [source for chunk in generation for source in chunk.sources]
                    texts.append(generation.result.tokens)
                assert texts[0] == texts[1] == texts[2]
        assert "model" in sources
        calibration = session.draft_models.model.calibration
        assert calibration.trials > 30  # tokens of the model that were verified
        assert calibration.acceptance > 0.5  # the same model, quantized otherwise, which knows the noise
