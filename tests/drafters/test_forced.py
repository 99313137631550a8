"""What a grammar forces is drafted, in the tokens that the target's tokenizer would choose."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.backends.scripted import ScriptedVocab
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Room, Text, Verified
from specx.drafters.forced import PRIOR, ForcedCalibration, ForcedDrafter, tokens_of

VOCAB = ScriptedVocab(300)
NOTHING = Output(np.zeros((1, 300), np.float32))


def ids(text):
    return VOCAB.tokenize(text.encode(), add_special=False, parse_special=False)


class Run:
    """Forces what it is told. Implements `Forcing`."""

    def __init__(self, run=b""):
        self.run = run

    def forced(self):
        return self.run


class Free(Drafter):
    """Proposes one chain, and another after anything."""

    source_names = ("free", "other")

    def __init__(self, draft=EMPTY_DRAFT, below=EMPTY_DRAFT):
        self.draft, self.below, self.told = draft, below, []

    def start(self, text):
        return FreeDrafting(self)


class FreeDrafting(Drafting):
    def __init__(self, drafter):
        self.drafter = drafter

    def propose(self, room, after=()):
        self.drafter.told.append((room, list(after)))
        draft = self.drafter.below if after else self.drafter.draft
        return draft.head(min(room.limit, len(draft)))

    def observe(self, seen):
        self.drafter.told.append(list(seen.tokens))


def started(run, free=None, tokens=(1, 2)):
    drafter = ForcedDrafter(free or Free(), VOCAB)
    forcing = Run(run)
    text = Text(list(tokens), forcing=forcing)
    return drafter, drafter.start(text), text, forcing


def test_a_text_without_a_grammar_is_the_inner_drafters_own():
    free = Free(Draft.of_chain([5], [0.5]))
    drafter = ForcedDrafter(free, VOCAB)
    assert drafter.source_names == ("free", "other", "grammar")
    assert isinstance(drafter.start(Text([1])), FreeDrafting)


def test_the_draft_is_what_is_forced():
    _, drafting, _, forcing = started(b'name": the')
    draft = drafting.propose(Room(8, 1))
    assert draft.tokens.tolist() == ids('name": the') and len(draft) > 4
    assert set(draft.sources.tolist()) == {2}
    n = len(draft)
    assert draft.probs == pytest.approx([*np.cumprod([PRIOR[0]] * (n - 1)), PRIOR[0] ** (n - 1) * PRIOR[1]])
    assert drafting.propose(Room(3, 1)).tokens.tolist() == ids('name": the')[:3]
    assert len(drafting.propose(Room(0, 1))) == 0
    forcing.run = b""
    assert len(drafting.propose(Room(8, 1))) == 0


def test_other_drafts_share_what_they_agree_on_and_go_on_below():
    a, b, c = ids("name")[:3]
    free = Free(Draft.of_chain([a, 99], [0.5, 0.4], 1), Draft.of_chain([7, 8], [0.5, 0.25]))
    _, drafting, _, _ = started(b"nam", free)
    chain = drafting.propose(Room(8, 1))
    assert chain.tokens.tolist() == [a, b, c, 7, 8]
    assert chain.sources.tolist() == [1, 2, 2, 0, 0]
    path = PRIOR[0] ** 2 * PRIOR[1]
    assert chain.probs[2:] == pytest.approx([path, path * 0.5, path * 0.25], rel=1e-5)
    assert free.told[:2] == [(Room(8, 1), []), (Room(5, 1), [a, b, c])]
    tree = drafting.propose(Room(8, 4))
    assert set(tree.tokens.tolist()) == {a, b, c, 7, 8, 99}
    assert free.told[2][0] == Room(8, 3)  # a leaf is left for it
    # What is asked for after a chain is no business of the grammar's.
    assert drafting.propose(Room(8, 1), [3]).tokens.tolist() == [7, 8]


def test_it_learns_how_the_target_splits_what_is_forced():
    drafter, drafting, text, _ = started(b"name")
    before = drafter.calibration.hazard(False)
    for _ in range(50):
        drafting.propose(Room(8, 1))
        wrong = ids("nx")
        text.append(wrong)
        drafting.observe(Verified(wrong, EMPTY_DRAFT, NOTHING))
    counts = drafter.calibration.counts
    assert counts[0, 0] / counts[0, 1] == pytest.approx(0.5, abs=0.01) and counts[1].sum() == 0
    assert drafter.calibration.hazard(False) < 0.6 < before
    drafting.observe(Verified(ids("name"), EMPTY_DRAFT, NOTHING))  # a step in which it was not asked
    assert counts[1].sum() == 0


def test_hits_and_trials_fade():
    calibration = ForcedCalibration()
    for _ in range(1000):
        calibration.score(True, True)
    for _ in range(100):
        calibration.score(True, False)
    assert calibration.hazard(True) < 0.5 and calibration.hazard(False) == PRIOR[0]


class Merging(ScriptedVocab):
    """Has a token for two bytes that others end and begin with, and puts a space before a text."""

    def tokenize(self, text, *, add_special, parse_special):
        return super().tokenize(b" " + text, add_special=add_special, parse_special=parse_special)


def test_tokens_are_those_of_the_text_as_a_whole():
    the = ids(" the")
    assert len(the) == 1
    # " the" is one token: after a space that was emitted alone it is not, whatever follows.
    assert tokens_of(VOCAB, ids("a") + ids(" "), b"the") == ids("t") + ids("h") + ids("e")
    assert tokens_of(VOCAB, ids("a"), b" the") == the
    assert tokens_of(Merging(300), ids("a"), b" the") == the
    assert tokens_of(Merging(300), ids("a") + ids(" "), b"the") in ([], ids("t") + ids("h") + ids("e"))


def test_bytes_that_are_no_whole_character_are_left_out():
    assert tokens_of(VOCAB, [], "né".encode()) == ids("né")
    assert tokens_of(VOCAB, [], "né".encode()[:-1]) == ids("n")
    assert tokens_of(VOCAB, [], b"\xa9n") == []
