"""The free draft and sources that cost time become one tree; every source learns from what came."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Room, Text, Verified
from specx.drafters.calibration.collapse import Collapse
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import Guess, GuessCosts, Guesser, GuesserSource
from specx.drafters.mixture import MixtureDrafter
from specx.kernels.reference.foresight import Beside

NOTHING = Output(np.zeros((1, 8), np.float32))
CHAIN, TREE = Room(8, 1), Room(8, 4)


class Fixed(Drafter):
    """Proposes the same draft every time, as far as there is room, and writes down what it is told."""

    source_names = ("fixed",)

    def __init__(self, draft=EMPTY_DRAFT):
        self.draft = draft
        self.followed = []

    def start(self, text):
        self.followed.append(FixedDrafting(self.draft))
        return self.followed[-1]


class FixedDrafting(Drafting):
    def __init__(self, draft):
        self.draft, self.rooms, self.told = draft, [], []

    def propose(self, room, after=()):
        if after:
            return EMPTY_DRAFT
        self.rooms.append(room)
        return self.draft.head(min(room.limit, len(self.draft)))

    def observe_prompt(self, tokens, logits):
        self.told.append(tokens.tolist())

    def observe(self, seen):
        self.told.append(list(seen.tokens))

    def close(self):
        self.told.append("closed")


class Oracle(GuesserSource):
    """Continues a text as a function says; needs no weights.

    Args:
        name: of the source.
        following: token after these tokens, None for no guess.
        loaded: whether it is ready.
    """

    def __init__(self, name, following, *, loaded=True, margin=5.0):
        self.name = name
        self.costs = GuessCosts(token_ms=2.0, further_ms=0.5, read_ms=0.1, open_ms=90.0)
        self.calibration = ModelCalibration()
        self.collapse = Collapse()
        self.following, self.ready, self.margin = following, loaded, margin
        self.guessers = []

    @property
    def loaded(self):
        return self.ready

    def follow(self, text):
        self.guessers.append(OracleGuesser(self, text))
        return self.guessers[-1]


class OracleGuesser(Guesser):
    def __init__(self, source, text):
        self.source, self.text = source, text
        self.read, self.observed, self.closed, self.useless = 0, [], 0, False

    @property
    def usable(self):
        return not self.useless

    def unread(self, chain):
        return max(len(self.text.tokens) + len(chain) - self.read, 1)

    def guess(self, chain):
        token = self.source.following([*self.text.tokens, *chain])
        self.source.ready = True
        self.read = len(self.text.tokens) + len(chain)
        self.useless = token is None
        return None if token is None else Guess(token, self.source.margin)

    def observe(self, seen):
        self.observed.append(list(seen.tokens))

    def close(self):
        self.closed += 1


def counting(by):
    return lambda tokens: tokens[-1] + by


def mixture(*sources, free=EMPTY_DRAFT):
    fixed = Fixed(free)
    drafter = MixtureDrafter(fixed, [source.name for source in sources])
    drafter.guessers[:] = sources
    return drafter, fixed


def emit(text, drafting, *tokens):
    text.append(tokens)
    drafting.observe(Verified(tokens, EMPTY_DRAFT, NOTHING))


def paths(draft):
    """Path of tokens -> source."""
    found = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return dict(zip(found, draft.sources.tolist(), strict=True))


def offered(drafting, room=TREE):
    return {offer.source: offer for offer in drafting.offers(room)}


def test_two_sources_side_by_side():
    one, two = Oracle("one", counting(1)), Oracle("two", counting(10))
    drafter, fixed = mixture(one, two, free=Draft.of_chain([50, 51], [0.5, 0.3]))
    assert drafter.source_names == ("fixed", "one", "two")
    text = Text([1, 2, 3])
    drafting = drafter.start(text)
    draft = drafting.propose(TREE)
    assert paths(draft) == {(50,): 0, (50, 51): 0}
    assert fixed.followed[0].rooms == [Room(8, 2)]  # a leaf for each of them is left
    offers = offered(drafting)
    assert list(offers) == ["one", "two"]
    draft = offers["one"].take()
    assert paths(draft).keys() == {(50,), (50, 51), (4,)}
    draft = offered(drafting)["two"].take()
    draft = offered(drafting)["two"].take()
    draft = offered(drafting)["one"].take()
    assert paths(draft) == {(50,): 0, (50, 51): 0, (4,): 1, (4, 5): 1, (13,): 2, (13, 23): 2}
    assert draft.probs.tolist() == sorted(draft.probs.tolist(), reverse=True)
    below = sum(draft.probs[draft.parents == -1].tolist())
    assert below <= 1 + 1e-6  # one distribution
    # A new step begins with the free draft alone.
    emit(text, drafting, 4)
    assert paths(drafting.propose(TREE)) == {(50,): 0, (50, 51): 0}


def test_sources_that_agree_share_a_node():
    one, two = Oracle("one", counting(1)), Oracle("two", counting(1))
    drafter, _ = mixture(one, two, free=Draft.of_chain([4, 9], [0.5, 0.3]))
    drafting = drafter.start(Text([3]))
    drafting.propose(TREE)
    first = offered(drafting)["one"].take()
    both = offered(drafting)["two"].take()
    assert paths(first).keys() == paths(both).keys() == {(4,), (4, 9)}
    assert both.probs[0] == pytest.approx(first.probs[0])


def test_what_a_source_is_expected_to_give():
    source = Oracle("one", counting(1))
    drafter, _ = mixture(source, free=Draft.of_chain([50], [0.2]))
    drafting = drafter.start(Text([1, 2, 3]))
    drafting.propose(TREE)
    offer = offered(drafting)["one"]
    assert (offer.most, offer.token_ms) == (8, 2.0)
    assert offer.invest_ms == pytest.approx(2 * 0.5)  # two tokens before the last one are unread
    [(probability, forecast)] = offer.forecast(3)
    assert probability == 1
    assert paths(forecast) == {(-1,): 1, (-1, -1): 1, (-1, -1, -1): 1, (50,): 0}
    expected = Beside(*source.calibration.counts.expected_beside(False, [np.float32(0.2).item()])[0])
    later = source.calibration.counts.later(False)
    assert offer.record is not None
    assert offer.record() == (expected.right, 0)
    chain = [prob for prob, token in zip(forecast.probs, forecast.tokens, strict=True) if token < 0]
    assert chain == pytest.approx([expected.right, expected.right * later, expected.right * later**2])
    # One token: what the free drafters say, or another.
    other, same = offer.forecast(1)
    assert (other[0], same[0]) == (pytest.approx(1 - expected.said), pytest.approx(expected.said))
    assert paths(other[1]).keys() == {(-1,), (50,)} and paths(same[1]) == {(50,): 0}
    assert max(other[1].probs[other[1].tokens < 0]) == pytest.approx(expected.if_other)
    assert same[1].probs[0] == pytest.approx(expected.if_said)
    offer.take()
    further = offered(drafting)["one"]
    assert (further.most, further.invest_ms) == (7, 0.0)
    [(_, forecast)] = further.forecast(1)
    assert paths(forecast).keys() == {(4,), (4, -1), (50,)}


def test_where_only_chains_are_possible_a_forecast_is_the_chain_of_the_source():
    drafter, fixed = mixture(Oracle("one", counting(1)), free=Draft.of_chain([50, 51], [0.5, 0.3]))
    drafting = drafter.start(Text([3]))
    drafting.propose(CHAIN)
    assert fixed.followed[0].rooms == [CHAIN]
    offer = offered(drafting, CHAIN)["one"]
    for further in (2, 8):
        [(_, forecast)] = offer.forecast(further)
        assert forecast.tokens.tolist() == [-1] * further
        assert forecast.parents.tolist() == list(range(-1, further - 1))
    assert [forecast.tokens.tolist() for _, forecast in offer.forecast(1)] == [[-1], [50, 51]]
    draft = offer.take()
    assert paths(draft).keys() == {(50,), (50, 51), (4,)}
    [(_, forecast)] = offered(drafting, CHAIN)["one"].forecast(2)
    assert forecast.tokens.tolist() == [4, -1, -1]


def test_no_more_is_offered_than_there_is_room_for():
    drafter, _ = mixture(Oracle("one", counting(1)))
    drafting = drafter.start(Text([3]))
    drafting.propose(Room(2, 4))
    for left in (2, 1):
        offer = offered(drafting)["one"]
        assert offer.most == left
        offer.take()
    assert offered(drafting) == {}


def test_nothing_is_loaded_before_the_first_token_is_out():
    source = Oracle("one", counting(1), loaded=False)
    drafter, _ = mixture(source)
    text = Text([1, 2, 3])
    drafting = drafter.start(text)
    drafting.propose(TREE)
    assert offered(drafting) == {}
    emit(text, drafting, 4)
    drafting.propose(TREE)
    offer = offered(drafting)["one"]
    assert offer.record is None  # not only to learn how good it is
    assert offer.invest_ms == pytest.approx(90.0 + 3 * 0.5)
    offer.take()
    assert source.loaded


def test_a_source_that_has_nothing_to_say():
    mute, other = Oracle("one", lambda _tokens: None), Oracle("two", counting(1))
    drafter, fixed = mixture(mute, other, free=Draft.of_chain([50], [0.2]))
    drafting = drafter.start(Text([3]))
    drafting.propose(TREE)
    assert paths(offered(drafting)["one"].take()).keys() == {(50,)}
    assert list(offered(drafting)) == ["two"]
    drafting.propose(TREE)
    assert fixed.followed[0].rooms[-1] == Room(8, 3)  # it needs no leaf any more


def test_sources_that_come_and_go():
    one, two = Oracle("one", counting(1)), Oracle("two", counting(10))
    drafter, _ = mixture(one, two)
    drafter.guessers.clear()
    text = Text([3])
    drafting = drafter.start(text)
    drafting.propose(TREE)
    assert offered(drafting) == {}
    drafter.guessers.append(one)
    emit(text, drafting, 4)
    drafting.propose(TREE)
    assert paths(offered(drafting)["one"].take()) == {(5,): 1}
    drafter.guessers[:] = [two]
    emit(text, drafting, 5)
    drafting.propose(TREE)
    assert one.guessers[0].closed == 1
    assert list(offered(drafting)) == ["two"]
    assert paths(offered(drafting)["two"].take()) == {(15,): 2}
    drafting.close()
    drafting.close()
    assert (one.guessers[0].closed, two.guessers[0].closed) == (1, 1)


def test_every_source_learns_from_what_it_said_itself():
    right, wrong = Oracle("one", counting(1)), Oracle("two", counting(10))
    drafter, fixed = mixture(right, wrong)
    text = Text([3])
    drafting = drafter.start(text)
    drafting.observe_prompt(np.array([3], np.int32), np.zeros((1, 8), np.float32))
    for _ in range(20):
        drafting.propose(TREE)
        for _ in range(2):
            for name in ("one", "two"):
                offered(drafting)[name].take()
        emit(text, drafting, text.tokens[-1] + 1, text.tokens[-1] + 2, text.tokens[-1] + 3)
    assert (right.calibration.trials, wrong.calibration.trials) == (40, 20)  # up to the first that was wrong
    assert right.calibration.acceptance > 0.9 > 0.1 > wrong.calibration.acceptance
    expected, seen = wrong.collapse.rates
    assert expected > seen == 0 and not right.collapse.alarm
    assert len(right.guessers[0].observed) == len(wrong.guessers[0].observed) == 20
    assert fixed.followed[0].told[:2] == [[3], [4, 5, 6]]
    drafting.propose(TREE)
    draft = offered(drafting)["one"].take()
    draft = offered(drafting)["two"].take()
    sure = dict(zip(paths(draft), draft.probs.tolist(), strict=True))
    assert sure[(text.tokens[-1] + 1,)] > 0.8 > 0.3 > sure[(text.tokens[-1] + 10,)]


def test_a_step_that_a_source_was_not_asked_in_teaches_nothing_of_it():
    source = Oracle("one", counting(1))
    drafter, _ = mixture(source)
    text = Text([3])
    drafting = drafter.start(text)
    drafting.propose(TREE)
    offered(drafting)["one"].take()
    emit(text, drafting, 4)
    drafting.propose(TREE)
    emit(text, drafting, 9)
    assert source.calibration.trials == 1


def test_several_texts_share_what_is_known_of_a_source_and_nothing_else():
    source = Oracle("one", counting(1))
    drafter, fixed = mixture(source)
    texts = [Text([3]), Text([40], temperature=0.8)]
    draftings = [drafter.start(text) for text in texts]
    for drafting in draftings:
        drafting.propose(TREE)
    drafts = [offered(drafting)["one"].take() for drafting in draftings]
    assert [draft.tokens.tolist() for draft in drafts] == [[4], [41]]
    drafts[0] = offered(draftings[0])["one"].take()
    assert drafts[0].tokens.tolist() == [4, 5]
    assert offered(draftings[1])["one"].most == 7
    emit(texts[0], draftings[0], 4)
    emit(texts[1], draftings[1], 7)
    assert source.calibration.trials == 2
    draftings[0].close()
    assert [guesser.closed for guesser in source.guessers] == [1, 0]
    assert fixed.followed[0].told[-1] == "closed" and "closed" not in fixed.followed[1].told
    draftings[1].propose(TREE)
    assert offered(draftings[1])["one"].take().tokens.tolist() == [8]
