"""Draft models in a session: found after the first token, tried, kept or dropped, remembered."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.errors import ModelError, UsageError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Candidate, Unfit

V = 64
STEPS = {"0": {"1": 20.0, "2": 21.0, "4": 23.0, "8": 26.0, "16": 32.0, "64": 80.0}}
WARM = SamplingSettings(seed=5, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
LAWS = {"good": {}, "useless": {"seed": 99}}


def candidate(name, step_bytes=10):
    return Candidate(Path(f"{name}.gguf"), name, f"fingerprint of {name}", V, step_bytes, 80_000_000)


class Drafted(ScriptedModel):
    """A draft model; `law` is a model that it says the same as from now on."""

    def __init__(self, world, name, **options):
        costs = {1: world.ms, 64: 3 * world.ms}
        super().__init__(V, step_costs=costs, clock=world.clock, **options)
        self.world, self.name, self.law, self.longest = world, name, None, 0

    def logits(self, context):
        return super().logits(context) if self.law is None else self.law.logits(context)

    def forward(self, trees, want=Want.LOGITS):
        length = max(tree.cache.length + len(tree) for tree in trees)
        self.longest = max(self.longest, length)
        if length > self.world.fails_at:
            raise ModelError("it is on fire")
        return super().forward(trees, want)

    def close(self):
        self.world.log.append(("closed", self.name))
        super().close()


@dataclass
class World:
    """Scripted draft models, and what happens to them."""

    found: list = field(default_factory=list)
    laws: dict = field(default_factory=dict)  # name -> options of its model
    ms: float = 1.0
    obstacles: dict = field(default_factory=dict)
    broken: tuple = ()
    fails_at: float = float("inf")  # tokens of a text
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    log: list = field(default_factory=list)
    models: dict = field(default_factory=dict)
    known: bool = False  # whether all files were looked into before

    def search(self):
        for item in self.found:
            if not self.known:
                self.log.append(("searched", self.session.slots[-1].cache.length))
                yield None
            yield item

    def watch(self, layers):
        self.log.append(("watched", tuple(layers)))

    def obstacle(self, one):
        return self.obstacles.get(one.name)

    def load(self, one):
        self.log.append(("loaded", one.name))
        if one.name in self.broken:
            raise ModelError("it is cut short")
        self.clock.sleep(0.2)
        options = {"sharpness": 2.0, **self.laws.get(one.name, {})}
        self.models[one.name] = Drafted(self, one.name, **options)
        return self.models[one.name]

    def loaded(self):
        return [name for what, name in self.log if what == "loaded"]


def models_of(world, session, learned=None, **options):
    return DraftModels(
        world,
        learned or session.learned,
        session.staircase,
        step_bytes=100,
        n_ctx=session.n_ctx,
        notice=world.notices.append,
        explain=world.explained.append,
        clock=world.clock,
        **options,
    )


def session_of(world, *, drafter="auto", forced=None, root=None, quantized=False, answers=None, script=()):
    world.notices, world.explained = [], []
    settings = Asked(Path("scripted.gguf"), drafter=drafter, store=root is not None, answers=answers)
    learned = Learned(Store(root, world.notices.append), model_key="model", cost_key="cost")

    def draft_models(session):
        return models_of(world, session, learned, forced=forced, quantized_cache=quantized)

    steps = {int(n): ms for n, ms in STEPS["0"].items()}
    session = Session(
        ScriptedModel(V, step_costs=steps, clock=world.clock, script=script, peak=0.98),
        settings,
        learned,
        name="scripted",
        notice=world.notices.append,
        clock=world.clock,
        draft_models=draft_models,
    )
    session.staircase.watch = unwatched
    session.staircase.load_json(STEPS)
    world.session = session
    return session


def answer(session, n=100, prompt=(1, 2, 3), seed=5):
    generation = session.generate(
        list(prompt),
        SamplingSettings(seed=seed, temperature=1.0, top_k=0, top_p=1.0),
        n_predict=n,
        ignore_eos=True,
    )
    return generation.result, list(generation)


def rate(result):
    return result.timings.predicted_per_second


def test_a_head_that_is_known_reads_the_prompt():
    """If it promises more than others by its trial; where files are to be looked into, nothing is done."""
    head = replace(candidate("head"), layers=(1, 2, 3), trial=((500, 1000), (250, 500)))
    better, worse = (
        replace(head, name="better", fingerprint="b", trial=((600, 1000),)),
        candidate("large", 99),
    )
    world = World(found=[head, better, worse], known=True)
    session = session_of(world)
    session.set_drafter("none")
    session.draft_models = models_of(world, session)
    session.set_drafter("auto")
    assert [what for what in world.log if what[0] != "searched"] == [("watched", (1, 2, 3))]
    assert session.draft_models.candidate is better and not world.loaded()
    assert session.draft_models.model.calibration.acceptance == 0.6
    world.known, world.log = False, []
    session.draft_models = models_of(world, session)
    session.set_drafter("auto")
    assert session.draft_models.candidate is None and not world.loaded()
    poor = replace(head, trial=((10, 1000),), step_bytes=60)
    world.found, world.known, world.log = [poor], True, []
    session.draft_models = models_of(world, session)
    session.set_drafter("auto")
    assert session.draft_models.candidate is None and not world.log


@pytest.mark.parametrize("named", [False, True])
def test_a_head_that_was_renewed_takes_the_place_of_what_it_was(named):
    head = replace(candidate("head"), layers=(1, 2, 3), trial=((500, 1000),))
    world = World(found=[head], known=True)
    session = session_of(world, forced=head if named else None)
    session.set_drafter("none")
    world.log = []
    session.draft_models = models = models_of(world, session, forced=head if named else None)
    session.set_drafter("auto")
    before = models.model
    better = replace(head, name="better", fingerprint="b", trial=((700, 1000),))
    models.renew(better)
    assert models.candidate is better and models.model.calibration.acceptance == 0.7
    assert before.failed and session.drafter.guessers == [models.model]
    assert world.log == [("watched", (1, 2, 3)), ("watched", ()), ("watched", (1, 2, 3))]


def test_a_good_model_is_found_loaded_kept_and_faster():
    world = World(found=[Unfit(Path("x.gguf"), "x", "no vocabulary"), candidate("good")])
    session = session_of(world)
    result, chunks = answer(session, 400)
    assert world.loaded() == ["good"]
    assert session.drafter_label == "auto, model good" and "model good" in session.summary()
    sources = [source for chunk in chunks for source in chunk.sources]
    assert sources[0] == "target" and sources.count("model") > 0.6 * len(sources)
    assert all(length >= 3 for what, length in world.log if what == "searched")  # after the first token
    assert world.explained[0] == "x cannot draft for this model: no vocabulary"
    assert any("kept" in text for text in world.explained)
    assert not world.notices
    session.close()
    assert ("closed", "good") in world.log
    plain, _ = answer(session_of(World()), 400)
    assert plain.tokens == result.tokens
    assert rate(result) > 1.8 * rate(plain)


def test_the_first_token_does_not_wait():
    for forced in (None, candidate("good")):
        world = World(found=[candidate("good")])
        session = session_of(world, forced=forced)
        generation = iter(session.generate([1, 2, 3], WARM, n_predict=50, ignore_eos=True))
        before = world.clock()
        next(generation)
        assert world.clock() - before == pytest.approx(0.02, rel=0.1)
        assert not world.loaded()
        list(generation)
        assert world.loaded() == ["good"]


def test_a_short_answer_does_not_load_what_would_not_pay_for_its_loading():
    world = World(found=[candidate("good")])
    session = session_of(world)
    answer(session, 4)
    assert not world.loaded() and session.draft_models.name is None


def test_the_most_promising_is_tried_first_and_losers_are_closed():
    sizes = {"slow": 60, **{f"useless{n}": 10 + n for n in range(12)}}
    world = World(
        found=[candidate(name, size) for name, size in sizes.items()],
        laws={name: {"seed": 96} for name in sizes},
    )
    session = session_of(world)
    for seed in range(12):
        answer(session, 300, seed=seed)
    # What each came to lowers what is hoped of the next, and it is tried later.
    tried = world.loaded()
    assert tried == [f"useless{n}" for n in range(len(tried))] and 2 <= len(tried) <= 4
    assumed = [int(share) for share in re.findall(r"(\d+)% right \(assumed\)", " ".join(world.explained))]
    assert assumed[0] == 70 and assumed == sorted(set(assumed), reverse=True)
    assert world.clock() <= 1.05 * 12 * 300 * 0.02  # of plain decoding
    closed = [name for what, name in world.log if what == "closed"]
    assert closed == tried[: len(closed)] and len(closed) >= len(tried) - 1
    dropped = [text for text in world.explained if "dropped" in text]
    assert len(dropped) == len(closed) and all("does not pay" in text for text in dropped)
    assert not world.notices


@pytest.mark.parametrize("repeats", [True, False])
def test_nothing_is_looked_for_where_what_costs_nothing_gives_as_much(repeats):
    loop = [7, 3, 9, 4, 22, 8, 31, 5]
    world = World(found=[candidate("good")])
    session = session_of(world, script=loop if repeats else ())
    answer(session, 300, prompt=loop * 4)
    assert bool(world.log) != repeats  # the free drafters know by then how a text goes on that repeats itself


def test_what_is_quick_to_load_is_preferred_where_little_is_left_to_be_written():
    big = replace(candidate("big", 2), size=800_000_000)
    for n, loaded in ((100, ["small"]), (1500, ["big"])):
        world = World(found=[big, candidate("small", 12)])
        session = session_of(world, answers=1)
        for length in [n] * 30:
            session.learned.lengths.add(length, ended=True)
        answer(session, n)
        assert world.loaded() == loaded


def test_a_loser_costs_little():
    world = World(found=[candidate("useless")], laws=LAWS)
    session = session_of(world)
    taken = tokens = 0.0
    for seed in range(6):
        start = world.clock()
        result, _ = answer(session, 200, seed=seed)
        taken += world.clock() - start
        tokens += len(result.tokens)
    plain = 0.0
    other = World()
    bare = session_of(other)
    for seed in range(6):
        start = other.clock()
        answer(bare, 200, seed=seed)
        plain += other.clock() - start
    assert taken <= 1.05 * plain + 0.3  # 0.2 s of it to load it


def test_no_room_for_one_and_the_next_is_taken():
    world = World(found=[candidate("big"), candidate("good", 20)], obstacles={"big": "it needs 9 GiB"})
    session = session_of(world)
    answer(session, 60)
    assert world.loaded() == ["good"]
    assert "big is left out: it needs 9 GiB" in world.explained


def test_one_that_cannot_be_loaded_is_named_and_the_next_is_taken():
    world = World(found=[candidate("bad"), candidate("good", 20)], broken=("bad",))
    session = session_of(world)
    result, _ = answer(session, 100)
    assert "the draft model bad cannot be loaded: it is cut short" in world.notices
    assert world.loaded() == ["bad", "good"]
    assert result.tokens == answer(session_of(World()), 100)[0].tokens


def test_one_that_fails_in_the_middle_is_dropped_with_a_notice():
    world = World(found=[candidate("good")], fails_at=30)
    session = session_of(world)
    result, _ = answer(session, 100)
    assert any(re.search("good is dropped: .*on fire", text) for text in world.notices)
    assert world.log[-1] == ("closed", "good")
    assert result.tokens == answer(session_of(World()), 100)[0].tokens


def test_a_named_one_is_never_dropped_for_losing():
    world = World(found=[candidate("never looked for")], laws=LAWS)
    session = session_of(world, forced=candidate("useless"))
    for seed in range(4):
        result, _ = answer(session, 200, seed=seed)
    assert world.loaded() == ["useless"] and session.draft_models.name == "useless"
    assert result.timings.draft_ms <= 0.05 * result.timings.predicted_ms  # but hardly asked


def test_what_was_learned_is_remembered(tmp_path):
    world = World(found=[candidate("good")], ms=2.0)
    with session_of(world, root=tmp_path) as session:
        answer(session, 300)
    world.log.clear()
    with session_of(world, root=tmp_path) as session:
        answer(session, 60)
        model = session.draft_models.model
        assert model.calibration.trials > 64
        assert model.costs.measured and model.costs.token_ms == pytest.approx(2.0, rel=0.1)
        assert model.costs.open_ms == pytest.approx(200.0)
        assert any("counted on" in text for text in world.explained)
    damaged = next((tmp_path / "pairs").glob("*.json"))
    damaged.write_text('{"version": 1, "cost": {"token_ms": "?"}}')
    with session_of(world, root=tmp_path) as session:
        answer(session, 60)
        assert session.draft_models.model.calibration.trials <= 64
    assert any("damaged" in text for text in world.notices)


def test_it_is_closed_before_its_target_whatever_stands_in_the_way(monkeypatch):
    """What reads the matrices of another model must not outlive it."""
    world = World([candidate("good")], LAWS)
    session = session_of(world)
    answer(session, 200)
    assert world.loaded() == ["good"]
    close = session.model.close
    monkeypatch.setattr(session.model, "close", lambda: (world.log.append(("closed", "target")), close()))

    def pressed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.learned, "save_pair", pressed)
    with pytest.raises(KeyboardInterrupt):
        session.close()
    assert world.log[-2:] == [("closed", "good"), ("closed", "target")]


def test_it_can_be_forgotten():
    world = World(found=[candidate("good")])
    session = session_of(world)
    answer(session, 200)
    assert session.draft_models.model.calibration.trials > 50
    session.reset()
    assert session.draft_models.model.calibration.trials == 0
    assert session.draft_models.name == "good"  # but not unloaded


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_a_collapse_is_told_once_with_its_probable_cause(quantized, forced):
    world = World(found=[candidate("good")])
    session = session_of(world, forced=candidate("good") if forced else None, quantized=quantized)
    answer(session, 400)
    assert not world.notices
    world.models["good"].law = ScriptedModel(V, seed=99)  # from now on it is wrong
    for seed in range(4):
        answer(session, 200, seed=seed)
    told = [text for text in world.notices if "far less often" in text]
    assert len(told) == 1
    cause = "quantized KV cache (-ctkd f16" if quantized else "another kind of text"
    assert cause in told[0] and re.search(r"\(\d+% of its last tokens, not \d+%\)", told[0])


def test_names():
    world = World()
    session = session_of(world, drafter="none")
    assert "model" not in session.drafters
    session.set_drafter("model")
    answer(session, 10)
    assert "no draft model for this model is on this machine" in world.notices[0]
    named = session_of(World(), forced=candidate("good"))
    assert "model" in named.drafters
    learned = Learned(Store(None), model_key="", cost_key="")
    bare = Session(ScriptedModel(V), Asked(Path("x"), store=False), learned, name="x")
    with pytest.raises(UsageError, match="no draft model"):
        bare.set_drafter("model")


def test_a_context_that_shifts_and_one_that_is_longer_than_the_models():
    world = World(found=[candidate("good")], laws={"good": {"n_ctx": 64}})
    session = session_of(world)
    result, _ = answer(session, 300)
    assert result.tokens == answer(session_of(World()), 300)[0].tokens
    assert 40 < world.models["good"].longest <= 64
    assert np.isfinite(result.timings.draft_ms)


def test_it_drafts_for_several_texts_at_once_and_each_has_room_of_its_own():
    world = World(found=[candidate("good")])
    session = session_of(world)
    prompts = ([1, 2, 3], [4, 5, 6, 7], [9])
    sampling = SamplingSettings(seed=5, temperature=0.0)
    asked = [session.generate(list(p), sampling, n_predict=150, ignore_eos=True) for p in prompts]
    sources = [name for _, chunk in session.together(asked) for name in chunk.sources]
    assert world.loaded() == ["good"] and "model" in sources
    alone = session_of(World(), drafter="none")
    for prompt, generation in zip(prompts, asked, strict=True):
        plain = alone.generate(list(prompt), sampling, n_predict=150, ignore_eos=True)
        list(plain)
        assert generation.result.tokens == plain.result.tokens
    model = world.models["good"]
    for _ in range(model.facts.max_texts - len(prompts)):  # no text has taken more room than for itself
        model.open()
    for seed, prompt in enumerate(([7, 8], [11], [12, 13])):
        generation = session.generate(prompt, replace(WARM, seed=seed), n_predict=50, ignore_eos=True)
        # And later ones find the room of those that are finished.
        assert "model" in {name for chunk in generation for name in chunk.sources}


def test_a_model_that_was_good_is_judged_anew_once_it_is_good_no_more():
    world = World(found=[candidate("good"), candidate("better", 9)])
    session = session_of(world)
    answer(session, 400)
    assert any("kept" in text for text in world.explained)
    world.models["better"].law = ScriptedModel(V, seed=99)
    for seed in range(12):
        answer(session, 200, seed=seed)
    assert world.loaded() == ["better", "good"]
    assert any("better is dropped: it does not pay" in text for text in world.explained)
    assert session.draft_models.name == "good"
