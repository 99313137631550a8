"""A model checks the free draft in one call, and the free drafters go on from where its chain ends."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Room, Text, Verified
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel
from specx.kernels._native import AskedChain, Below
from specx.kernels.reference.foresight import Beside
from specx.kernels.reference.model_counts import AGREES, OTHER, SILENT

V = 64
CHAIN = Room(8, 1)
NOTHING = Output(np.zeros((1, V), np.float32))


def chain_of(tokens, hazards, source=0):
    return Draft.of_chain(tokens, np.cumprod(hazards), source)


def paths(draft):
    """Path of tokens -> (probability, source)."""
    found = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        assert parent < len(found)  # parents come first
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert draft.probs.tolist() == sorted(draft.probs.tolist(), reverse=True)
    return dict(zip(found, zip(draft.probs.tolist(), draft.sources.tolist(), strict=True), strict=True))


class Saying(Drafter):
    """Claims the same chain every time, and another below it."""

    source_names = ("saying",)

    def __init__(self, draft=EMPTY_DRAFT, below=EMPTY_DRAFT):
        self.draft, self.below, self.asked_after = draft, below, []

    def start(self, text):
        return SayingDrafting(self)


class SayingDrafting(Drafting):
    def __init__(self, drafter):
        self.drafter = drafter

    def propose(self, room, after=()):
        if after:
            self.drafter.asked_after.append(list(after))
        found = self.drafter.below if after else self.drafter.draft
        return found.head(min(room.limit, len(found)))


class Calls(ScriptedModel):
    """Writes down what is computed."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.calls = []

    def forward(self, trees, *rest):
        self.calls += [tree.tokens.tolist() for tree in trees]
        return super().forward(trees, *rest)


def source_of(model, clock=None, **costs):
    times = {"token_ms": 4.0, "further_ms": 0.5, "read_ms": 0.1, "open_ms": 0.0, **costs}
    options = {} if clock is None else {"clock": clock}
    source = DraftModel(lambda: model, n_ctx=512, shared=V, costs=GuessCosts(**times), **options)
    source.open().cache.close()  # it is loaded
    source._opened = 0
    return source


def greedy(model, tokens, n):
    """What the model says after `tokens`."""
    said = []
    for _ in range(n):
        said.append(int(np.argmax(model.logits([*tokens, *said]))))
    return said


def following(model, free, text):
    drafter = MixtureDrafter(free)
    drafter.guessers.append(source_of(model))
    drafting = drafter.start(text)
    return drafter, drafting


def other_than(token):
    return token % (V - 1) + 1


def test_what_is_claimed_is_the_most_promising_way_on():
    def claims_after(draft, path):
        chain = AskedChain(Below(), 1)
        chain.begin(ModelCalibration().counts, False, draft, True)
        chain.add(path, [1.0] * len(path))
        return chain.foresee().claims

    draft = chain_of([5, 6, 7], [0.5, 0.8, 0.5]).merged([5, 8], [0.5, 0.1], 1)
    assert claims_after(draft, [])[0] == [5, 6, 7]
    tokens, hazards = claims_after(draft, [5])
    assert tokens == [6, 7] and hazards[1] == pytest.approx(0.5, abs=1e-6)
    assert claims_after(draft, [5, 8])[0] == claims_after(draft, [9])[0] == []
    assert claims_after(EMPTY_DRAFT, [])[0] == []


def test_a_tree_is_grafted_below_a_path():
    draft = chain_of([5, 6], [0.5, 0.8]).merged([9, 4], [0.4, 0.5], 1)
    below = Draft(
        np.array([7, 8, 3], np.int32),
        np.array([-1, 0, -1], np.int32),
        np.array([0.75, 0.5, 0.25], np.float32),
        np.array([2, 2, 3], np.uint8),
    )
    before, after = paths(draft), paths(draft.grafted([9, 4], below))
    at = before[(9, 4)][0]
    grafted = {(9, 4, 7): (0.75, 2), (9, 4, 7, 8): (0.5, 2), (9, 4, 3): (0.25, 3)}
    assert after.keys() == before.keys() | grafted.keys()
    for path, (prob, source) in grafted.items():
        assert after[path] == (pytest.approx(prob * at), source)
    assert all(after[path] == before[path] for path in before)
    assert paths(draft.grafted([9, 4], EMPTY_DRAFT)) == before


def test_what_the_free_drafters_say_below_other_tokens_is_averaged():
    below = Below()
    assert below.hazards() == []
    for _ in range(200):
        below.observe([0.8, 0.5])
        below.observe([])
    first, second = below.hazards()
    assert first == pytest.approx(0.4, rel=0.05) and second == pytest.approx(0.5, rel=0.01)
    once = Below()
    once.observe([0.8, 0.5])
    assert once.hazards() == pytest.approx([0.8, 0.5])


def test_how_often_the_model_says_what_the_free_drafters_do_is_learned():
    def of(calibration, noisy, hazard):
        return Beside(*calibration.counts.expected_beside(noisy, [hazard])[0])

    calibration = ModelCalibration()
    prior = of(calibration, False, 0.8)
    assert 0 < prior.both <= prior.said < 1 and prior.both <= prior.right <= 1
    for i in range(200):
        calibration.counts.score_said(False, 0.8, i % 4 > 0)
        calibration.counts.score_beside(False, 0.8, i % 4 > 0, i % 4 > 0)
    learned = of(calibration, False, 0.75)  # of the same kind
    assert learned.said == pytest.approx(0.75, abs=0.03)
    assert learned.both == pytest.approx(0.75, abs=0.03) and learned.if_said > 0.95 > 0.2 > learned.if_other
    assert of(calibration, True, 0.75).said != learned.said
    again = ModelCalibration.from_arrays(calibration.to_arrays())
    assert of(again, False, 0.75) == learned


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_check_gives_what_asking_token_by_token_would(temperature):
    rng = np.random.default_rng(3)
    model = ScriptedModel(V, max_width=32)
    text = Text(rng.integers(1, V, 20).tolist(), 5, temperature)
    checking, asking = source_of(model).follow(text), source_of(model).follow(text)
    asking.guess([])
    checking.guess([])
    for _ in range(40):
        chain, said = [], []
        for _ in range(int(rng.integers(0, 3))):
            chain.append(asking.guess(chain).token)
        for _ in range(6):
            said.append(asking.guess([*chain, *[guess.token for guess in said]]))
        right = int(rng.integers(0, 6))
        claimed = [guess.token for guess in said[:right]]
        wrong = int(rng.integers(0, 3))
        if wrong:
            claimed += [other_than(said[right].token), *rng.integers(1, V, wrong - 1).tolist()]
        got = checking.check(chain, claimed)
        assert got == said[: right + 1]
        emitted = [*chain, *[guess.token for guess in got]][: int(rng.integers(1, 4))]
        text.append(emitted)
        for guesser in (checking, asking):
            guesser.observe(Verified(emitted, EMPTY_DRAFT, NOTHING))


def test_a_check_is_one_call_and_what_agrees_is_not_read_again():
    model = Calls(V, max_width=32)
    text = Text(list(range(1, 9)))
    guesser = source_of(model).follow(text)
    first, second, third = greedy(model, text.tokens, 3)
    assert [guess.token for guess in guesser.check([], [first, second, other_than(third), 7])] == [
        first,
        second,
        third,
    ]
    assert model.calls == [[*text.tokens, first, second, other_than(third), 7]]
    guesser.guess([first, second, third])
    assert model.calls[1:] == [[third]]


def test_a_model_that_reads_one_token_at_a_time_is_not_asked_to_check():
    model = ScriptedModel(V, max_width=4)
    text = Text([1, 2, 3])
    _, drafting = following(model, Saying(chain_of([5, 6], [0.9, 0.9])), text)
    drafting.propose(CHAIN)
    drafting.offers(CHAIN)[0].take()
    drafting.observe(Verified([4], EMPTY_DRAFT, NOTHING))
    drafting.propose(CHAIN)
    assert len(drafting.offers(CHAIN)) == 1


def offers_of(drafting, room=CHAIN):
    token, *checks = drafting.offers(room)
    return token, checks


def test_a_check_is_another_offer_of_the_same_source():
    model = Calls(V, max_width=32)
    text = Text([1, 2, 3])
    one, two, three = greedy(model, text.tokens, 3)
    free = Saying(chain_of([one, two, other_than(three)], [0.9, 0.8, 0.7]))
    drafter, drafting = following(model, free, text)
    calibration = drafter.guessers[0].calibration
    drafting.propose(CHAIN)
    token, [check] = offers_of(drafting)
    assert (check.source, check.token_ms, check.record()) == (token.source, token.token_ms, token.record())
    assert check.first_ms == pytest.approx(3 * 0.5) and token.first_ms == 0
    assert check.invest_ms == token.invest_ms == pytest.approx(2 * 0.5)
    assert (token.most, check.most) == (8, 5)
    draft = check.take()
    assert model.calls == [[1, 2, 3, one, two, other_than(three)]]
    # What agrees goes to the target, and its own token instead of the first that does not.
    hazards = [
        calibration.counts.hazard(calibration.counts.cell(False, margin, depth, agreement))
        for depth, (margin, agreement) in enumerate(
            zip(margins(model, text, [one, two, three]), (AGREES, AGREES, OTHER), strict=True), 1
        )
    ]
    found = paths(draft)
    for n, path in enumerate([(one,), (one, two), (one, two, three)], 1):
        assert found[path][0] == pytest.approx(np.prod(hazards[:n]), rel=1e-5)
    assert found[(one, two, three)][1] == 1 and found[(one,)][1] == 0
    assert calibration.agreed[0].sum(axis=0).tolist() == pytest.approx(
        [2 * 0.99, 1 + 0.99 + 0.99**2], rel=0.02
    )
    # After it the same source may go on.
    further, _ = offers_of(drafting)
    assert further.most == 5
    # Every token is scored: the first two were right, as the free ones were; the third was not.
    emitted = [one, two, other_than(three)]
    text.append(emitted)
    drafting.observe(Verified(emitted, draft, NOTHING))
    assert calibration.tokens.tolist() == [2, 3]
    assert calibration.beside[0, :, 1].sum(axis=0)[1] == pytest.approx(1 + 1 + 1, abs=0.05)
    assert calibration.beside[0, :, 0].sum() == 0


def margins(model, text, tokens):
    for n, token in enumerate(tokens):
        logits = np.sort(model.logits([*text.tokens, *tokens[:n]]))
        assert int(np.argmax(model.logits([*text.tokens, *tokens[:n]]))) == token
        yield float(logits[-1] - logits[-2])


def test_the_free_drafters_go_on_below_the_chain_and_that_is_checked_next():
    model = Calls(V, max_width=32)
    text = Text([1, 2, 3])
    one, two, three = greedy(model, text.tokens, 3)
    below = chain_of([two, three], [0.8, 0.5])
    free = Saying(chain_of([other_than(one)], [0.6]), below)
    drafter, drafting = following(model, free, text)
    drafting.propose(CHAIN)
    draft = offers_of(drafting)[0].take()
    assert free.asked_after == [[one]]
    found = paths(draft)
    at = found[(one,)][0]
    assert found[(one, two)] == (pytest.approx(at * 0.8), 0)
    assert found[(one, two, three)] == (pytest.approx(at * 0.4), 0)
    assert drafter.below.hazards() == pytest.approx([0.8, 0.5])
    _, [check] = offers_of(drafting)
    check.take()
    assert model.calls[-1] == [one, two, three]
    assert free.asked_after[-1] == [one, two, three, *greedy(model, [*text.tokens, one, two, three], 1)]
    emitted = [one, two, three, *greedy(model, [*text.tokens, one, two, three], 1)]
    text.append(emitted)
    drafting.observe(Verified(emitted, draft, NOTHING))
    seen = drafter.guessers[0].calibration.cells[0, :, :, :, 1].sum(axis=(0, 1))
    assert seen[[SILENT, OTHER, AGREES]] == pytest.approx([1, 1, 2], abs=0.05)


def test_free_drafts_of_the_text_go_on_below_a_chain():
    text = Text([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 9])
    drafting = FreeDrafter(V).start(text)
    assert drafting.propose(CHAIN, [1, 2, 3]).tokens.tolist()[:2] == [4, 5]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_what_a_check_takes_is_what_it_said_it_would(temperature):
    clock = SimulatedClock()
    costs = {n: 4.0 + 0.5 * (n - 1) for n in range(1, 33)}
    model = ScriptedModel(V, max_width=32, step_costs=costs, clock=clock, script=range(1, 30), peak=0.95)
    text = Text(list(range(1, 20)), 3, temperature)
    drafter = MixtureDrafter(FreeDrafter(V))
    drafter.guessers.append(source_of(model, clock))
    drafting, checks = drafter.start(text), 0
    for _ in range(60):
        drafting.propose(CHAIN)
        for offer in drafting.offers(CHAIN):
            if offer.first_ms > 0:
                start = clock()
                offer.take()
                took_ms = (clock() - start) * 1e3
                assert took_ms == pytest.approx(offer.token_ms + offer.first_ms + offer.invest_ms, rel=0.1)
                checks += 1
                break
        else:
            drafting.offers(CHAIN)[0].take()
        emitted = [text.tokens[-1] % 29 + 1]
        text.append(emitted)
        drafting.observe(Verified(emitted, EMPTY_DRAFT, Output(model.logits(text.tokens)[None].copy())))
    assert checks > 10
