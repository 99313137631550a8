"""Drafts of the free drafters: shape, what they follow, and what their probabilities mean."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT, Room, Text, Verified
from specx.drafters.calibration.free import CELLS, LAYOUT, Calibration
from specx.drafters.free import MAX_WRITTEN, SHARED_PROMPT, FreeDrafter
from specx.drafters.none import NoDrafter

VOCAB = 64


def one_hot_rows(tokens, scale=9.0):
    rows = np.zeros((len(tokens), VOCAB), np.float32)
    rows[np.arange(len(tokens)), tokens] = scale
    return rows


def start(drafter, tokens, seed=0, temperature=0.0):
    """A text that begins with `tokens`, and what follows it."""
    text = Text(list(tokens), seed, temperature)
    return text, drafter.start(text)


def emit(text, drafting, tokens, draft, rows):
    text.append(tokens)
    drafting.observe(Verified(tokens, draft, Output(rows)))


def decode(text, drafting, stream, width, leaves=8):
    """Run the decode loop over a known stream; yields (draft, accepted rows) of every step."""
    at = len(text.tokens)
    while at < len(stream):
        draft = drafting.propose(Room(width, leaves))
        path, node = [], -1
        while at + len(path) < len(stream):
            below = np.flatnonzero((draft.parents == node) & (draft.tokens == stream[at + len(path)]))
            if not len(below):
                break
            node = int(below[0])
            path.append(node)
        emitted = stream[at : at + len(path) + 1]
        rows = np.random.default_rng(at).normal(size=(len(draft) + 1, VOCAB)).astype(np.float32)
        rows[[0, *(i + 1 for i in path)][: len(emitted)]] = one_hot_rows(emitted)
        emit(text, drafting, emitted, draft, rows)
        yield draft, path
        at += len(emitted)


def test_draft_follows_repeated_text():
    phrase = list(range(10, 22))
    _, drafting = start(FreeDrafter(VOCAB), phrase + phrase[:6])
    assert drafting.propose(Room(6, 1)).tokens.tolist() == phrase[6:]


def test_a_draft_goes_on_from_tokens_that_are_only_guessed():
    phrase = list(range(10, 22))
    text, drafting = start(FreeDrafter(VOCAB), [*phrase, 40])
    assert len(drafting.propose(Room(6, 1))) == 0
    assert drafting.propose(Room(3, 1), after=[10, 11, 12]).tokens.tolist() == [13, 14, 15]
    assert text.tokens == [*phrase, 40]


@pytest.mark.parametrize("room", [Room(0, 1), Room(5, 0)])
def test_nothing_is_drafted_without_room(room):
    _, drafting = start(FreeDrafter(VOCAB), [1, 2, 1, 2, 1])
    assert len(drafting.propose(room)) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_are_well_formed_trees_best_first(temperature):
    rng = np.random.default_rng(3)
    stream = rng.integers(0, 6, 300).tolist()
    drafter = FreeDrafter(VOCAB)
    text, drafting = start(drafter, stream[:50], seed=4, temperature=temperature)
    sizes = []
    for leaves, stop in ((1, 170), (3, 300)):
        for draft, _ in decode(text, drafting, stream[:stop], 12, leaves):
            n = len(draft)
            sizes.append(n)
            assert (draft.tokens.dtype, draft.parents.dtype) == (np.int32, np.int32)
            assert (draft.probs.dtype, draft.sources.dtype) == (np.float32, np.uint8)
            assert n <= 12
            assert (draft.parents < np.arange(n)).all()
            assert (draft.parents >= -1).all()
            assert (np.diff(draft.probs) <= 0).all()
            assert ((draft.probs > 0) & (draft.probs <= 1)).all()
            assert len(set(zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True))) == n
            assert n - len(set(draft.parents.tolist()) - {-1}) <= leaves
            assert (draft.sources < len(drafter.source_names)).all()
    assert max(sizes) == 12


def test_probabilities_become_the_observed_frequencies():
    # Every 2 is followed by 3 with probability 0.7, else by 4: after a while the drafts know.
    rng = np.random.default_rng(5)
    stream = []
    for _ in range(1500):
        stream += [2, 3 if rng.random() < 0.7 else 4]
    text, drafting = start(FreeDrafter(VOCAB), stream[:10])
    predicted, accepted = 0.0, 0
    for i, (draft, path) in enumerate(decode(text, drafting, stream, 3)):
        if i > 200:
            predicted += float(draft.probs.sum())
            accepted += len(path)
    assert accepted > 800
    assert predicted == pytest.approx(accepted, rel=0.05)


def test_rows_of_rejected_nodes_are_learned_too():
    text, drafting = start(FreeDrafter(VOCAB, sources=("recycle",)), [1, 2])
    drafting.observe_prompt(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    draft = drafting.propose(Room(1, 1))
    assert draft.tokens.tolist() == [7]
    # 7 was wrong; had it been right, 33 followed
    emit(text, drafting, [9], draft, one_hot_rows([9, 33]))
    emit(text, drafting, [2], EMPTY_DRAFT, one_hot_rows([2]))
    emit(text, drafting, [7], EMPTY_DRAFT, one_hot_rows([7]))
    assert drafting.propose(Room(1, 1)).tokens.tolist() == [33]


def test_what_fills_a_step_up_is_not_learned():
    text, drafting = start(FreeDrafter(VOCAB, sources=("recycle",)), [1, 2])
    drafting.observe_prompt(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    emit(text, drafting, [9], drafting.propose(Room(1, 1)).padded(3), one_hot_rows([9, 33, 34, 35]))
    emit(text, drafting, [7], EMPTY_DRAFT, one_hot_rows([7]))
    assert drafting.propose(Room(1, 1)).tokens.tolist() == [33]
    emit(text, drafting, [0], EMPTY_DRAFT, one_hot_rows([0]))
    assert drafting.propose(Room(1, 1)).tokens.tolist() == []  # 0 was never guessed, nor said before


def test_the_noise_of_the_position_is_used_when_it_helps():
    from specx.kernels._native import gumbel

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
    text, drafting = start(FreeDrafter(VOCAB, sources=("recycle",)), [0], seed=11, temperature=1.0)
    last, right, best = 0, 0, 0
    for position in range(1, 1500):
        draft = drafting.propose(Room(1, 1))
        y = int(np.argmax(logits[last] + gumbel(11, position, np.arange(VOCAB, dtype=np.int32))))
        if position > 500:
            right += draft.tokens.tolist() == [y]
            best += int(np.argmax(logits[last])) == y
        emit(text, drafting, [y], EMPTY_DRAFT, logits[last : last + 1])
        last = y
    assert right > 2 * best


def test_calibration_survives_a_save(tmp_path):
    drafter = FreeDrafter(VOCAB)
    stream = np.random.default_rng(1).integers(0, 4, 200).tolist()
    list(decode(*start(drafter, stream[:20]), stream, 4))
    np.savez(tmp_path / "calibration.npz", **drafter.calibration.to_arrays())
    with np.load(tmp_path / "calibration.npz") as arrays:
        restored = Calibration.from_arrays(arrays)
    np.testing.assert_array_equal(restored.hazards(), drafter.calibration.hazards())
    assert (drafter.calibration.hazards() != Calibration().hazards()).any()
    assert "match length: 1 " in restored.summary()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"counts": np.zeros((3, 2), np.float32)},
        {"counts": np.full((CELLS, 2), np.nan, np.float32)},
        {"counts": np.ones((CELLS, 2), np.float32) * np.array([2, 1], np.float32)},
        {"layout": np.zeros(3)},
        {"layout": np.array("two")},
    ],
)
def test_damaged_calibration_is_refused(arrays):
    with pytest.raises(ValueError, match="calibration"):
        Calibration.from_arrays({"layout": np.array(LAYOUT), **arrays})


@pytest.mark.parametrize("layout", [{}, {"layout": np.array(LAYOUT + 1)}])
def test_calibration_of_other_cells_begins_anew(layout):
    counts = np.ones((4320, 2), np.float32)
    assert Calibration.from_arrays({"counts": counts, **layout}).counts.sum() == 0


def test_rows_survive_a_save():
    drafter, other = FreeDrafter(VOCAB), FreeDrafter(VOCAB)
    _, drafting = start(drafter, [1, 2])
    drafting.observe_prompt(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    other.restore(drafter.to_arrays())
    assert start(other, [2])[1].propose(Room(1, 1)).tokens.tolist() == [7]
    with pytest.raises(ValueError, match="rows"):
        FreeDrafter(5).restore(drafter.to_arrays())


def test_a_text_that_goes_on_from_the_one_before_is_searched_once():
    drafter = FreeDrafter(VOCAB)
    text, drafting = start(drafter, [1, 2, 3])
    emit(text, drafting, [4, 5], EMPTY_DRAFT, one_hot_rows([4]))
    drafting.close()
    start(drafter, [1, 2, 3, 4, 5, 6])[1].close()
    assert drafter.history().tolist() == [1, 2, 3, 4, 5, 6]
    start(drafter, [1, 2, 9])[1].close()
    assert drafter.history().tolist() == [1, 2, 3, 4, 5, 6, -1, 1, 2, 9]


PHRASE = list(range(10, 22))


def write(drafting, text, tokens):
    """Emit `tokens` one by one; the logits say nothing."""
    for token in tokens:
        emit(text, drafting, [token], EMPTY_DRAFT, np.zeros((1, VOCAB), np.float32))


def test_what_one_text_is_writing_the_others_draft_from():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    first, one = start(drafter, [1, 2])
    second, other = start(drafter, [3, 4])
    write(one, first, PHRASE)
    write(other, second, PHRASE[:6])
    draft = other.propose(Room(6, 1))
    assert draft.tokens.tolist() == PHRASE[6:]
    assert [drafter.source_names[source] for source in draft.sources] == ["history"] * 6
    assert one.propose(Room(6, 1)).tokens.tolist() == []  # nothing has gone on from where it is
    one.close()
    for i in (5, 6):  # nor does it matter that it is finished, whoever comes next
        _, later = start(drafter, [i, *PHRASE[:6]])
        assert later.propose(Room(6, 1)).tokens.tolist() == PHRASE[6:]


def test_what_a_text_itself_said_comes_before_what_others_said_last():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    text, drafting = start(drafter, [1, 2, 30, 31, 5])
    other_text, other = start(drafter, [9])
    write(other, other_text, [1, 2, 40, 41])
    write(drafting, text, [1, 2])
    draft = drafting.propose(Room(8, 8))
    assert draft.tokens[draft.parents == -1].tolist() == [30, 40]
    assert [drafter.source_names[source] for source in draft.sources[draft.parents == -1]] == [
        "suffix",
        "history",
    ]


def test_how_an_answer_begins_is_known_from_the_ends_of_other_prompts():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    first, one = start(drafter, [*range(30), 50, 51])
    write(one, first, PHRASE)
    _, other = start(drafter, [45, 50, 51])
    assert other.propose(Room(4, 1)).tokens.tolist() == PHRASE[:4]


def test_of_a_long_prompt_the_others_search_the_end_only():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    start(drafter, [40, 41, 42] + [1] * SHARED_PROMPT)
    assert len(drafter.history()) == SHARED_PROMPT
    assert len(start(drafter, [40, 41])[1].propose(Room(4, 1))) == 0


@pytest.mark.parametrize("sources", [("recycle",), ("suffix",)])
def test_nothing_is_written_for_others_where_nobody_searches(sources):
    drafter = FreeDrafter(VOCAB, sources=sources)
    drafter.preload(np.array([1, 2, -1, 3], np.int32))
    write(*reversed(start(drafter, [4])), [5])
    assert (len(drafter.history()) > 0) == ("suffix" in sources)


def test_texts_share_the_recycled_rows_and_the_calibration():
    drafter = FreeDrafter(VOCAB)
    text, one = start(drafter, [1, 2])
    _, other = start(drafter, [5, 2])
    one.observe_prompt(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    assert other.propose(Room(1, 1)).tokens.tolist() == [7]  # after another token, but after 2
    before = drafter.calibration.hazards().copy()
    emit(text, one, [7], EMPTY_DRAFT, one_hot_rows([7]))
    assert (drafter.calibration.hazards() != before).any()
    surer = Text([1, 2])
    sure = drafter.start(surer).propose(Room(1, 1))
    untaught = FreeDrafter(VOCAB)
    untaught.restore(drafter.to_arrays())
    unsure = start(untaught, [1, 2])[1].propose(Room(1, 1))
    assert sure.tokens.tolist() == unsure.tokens.tolist() == [7]
    assert sure.probs[0] > unsure.probs[0]


def test_texts_that_take_turns_do_not_mix():
    rng = np.random.default_rng(8)
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    steps = []
    for low in (0, 30):
        stream = rng.integers(low, low + 5, 120).tolist()
        steps.append(decode(*start(drafter, stream[:20]), stream, 4))
    drafted = 0
    for pair in zip(*steps, strict=False):
        for low, (draft, _) in zip((0, 30), pair, strict=True):
            assert all(low <= token < low + 5 for token in draft.tokens.tolist())
            drafted += len(draft)
    assert drafted > 100


def test_history_is_found_by_every_text():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    drafter.preload(np.array([*PHRASE, -1, 60, 61], np.int32))
    assert drafter.history().tolist() == [*PHRASE, -1, 60, 61]
    for i in range(3):
        _, drafting = start(drafter, [i, *PHRASE[:4]])
        assert drafting.propose(Room(3, 1)).tokens.tolist() == PHRASE[4:7]
        assert len(start(drafter, [*PHRASE, 62 + i % 2])[1].propose(Room(3, 1))) == 0  # no match spans two


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="suffix"):
        FreeDrafter(VOCAB, sources=("magic",))


def test_no_drafter_drafts_nothing():
    text, drafting = start(NoDrafter(), [1, 2, 1, 2], seed=1, temperature=0.5)
    assert len(drafting.propose(Room(8, 8))) == 0
    assert list(drafting.offers(Room(8, 8))) == []
    drafting.observe_prompt(np.array([1], np.int32), one_hot_rows([2]))
    emit(text, drafting, [1], EMPTY_DRAFT, one_hot_rows([1]))
    assert len(drafting.propose(Room(8, 8))) == 0
    drafting.close()


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_however_many_texts_are_finished_what_is_searched_stays_bounded(at_once):
    drafter = FreeDrafter(VOCAB, max_written=2000)
    rng = np.random.default_rng(1)
    longest = 0
    for _ in range(150):
        texts = [start(drafter, rng.integers(1, VOCAB, 10).tolist()) for _ in range(at_once)]
        for text, drafting in texts:
            emitted = rng.integers(1, VOCAB, 30).tolist()
            emit(text, drafting, emitted, EMPTY_DRAFT, one_hot_rows(emitted[:1]))
            drafting.close()
        longest = max(longest, np.count_nonzero(drafter.history() >= 0))
    assert longest <= 2000 + at_once * 40
    # And what was finished last is searched by whoever comes next.
    searched = drafter.history().tolist()
    assert any(searched[i : i + 30] == emitted for i in range(len(searched)))


def test_texts_that_are_being_written_go_on_when_old_words_are_forgotten():
    drafter = FreeDrafter(VOCAB, sources=("suffix",), max_written=100)
    text, drafting = start(drafter, [1, 2])
    write(drafting, text, [3] * 90)
    write(drafting, text, PHRASE)
    _, other = start(drafter, [7, *PHRASE[:4]])  # more than 100: now the older half goes
    assert np.count_nonzero(drafter.history() >= 0) == 55
    assert other.propose(Room(4, 1)).tokens.tolist() == PHRASE[4:8]
    write(drafting, text, [40, 41])
    assert start(drafter, [8, 40])[1].propose(Room(4, 1)).tokens.tolist() == [41]


def test_of_one_text_without_end_what_is_searched_stays_bounded():
    drafter = FreeDrafter(VOCAB, sources=("suffix",))
    text, drafting = start(drafter, [1, 2])
    ever, longest = np.random.default_rng(1).integers(1, VOCAB, 1000).tolist(), 0
    for count in range(2 * MAX_WRITTEN // 1000 + 3):
        emitted = [*ever, 1 + count % (VOCAB - 1)]
        text.append(emitted)
        drafting._trie.observe(emitted, text.seed, text.position - len(emitted), 0.0)
        longest = max(longest, len(drafter._written))
    assert len(drafter._written) < longest <= 2 * MAX_WRITTEN
    write(drafting, text, ever[:20])
    assert drafting.propose(Room(4, 1)).tokens.tolist() == ever[20:24]


def test_logits_that_halves_cannot_hold_are_kept_as_the_largest():
    drafter = FreeDrafter(4)
    drafting = drafter.start(Text([1]))
    drafting.observe_prompt(np.array([1], np.int32), np.array([[1e9, -1e9, 2.0, np.inf]], np.float32))
    kept = drafter.to_arrays()
    assert kept["ids"][0].tolist()[:4] == [3, 0, 2, 1]
    assert kept["logits"][0].tolist()[:4] == [65504.0, 65504.0, 2.0, -65504.0]
