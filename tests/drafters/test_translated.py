"""Draft models of another vocabulary: what they write becomes the target's tokens, whatever splits it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.base import Output, Tree, Want, chain_parents
from specx.backends.scripted import ScriptedModel, ScriptedVocab
from specx.drafters.base import EMPTY_DRAFT, NO_TRUNCATION, Text, Verified
from specx.drafters.byte_map import ByteMap, whole
from specx.drafters.calibration.merging import Merging
from specx.drafters.draft_text import DraftText
from specx.drafters.guesser import GuessCosts
from specx.drafters.model import DraftModel
from specx.kernels._native import Pieces, rank_tokens

NOTHING = Output(np.zeros((1, 4), np.float32))
LETTERS = [bytes([byte]) for byte in range(256)]
START, END = b"<|im_start|>", b"<|im_end|>"


class Words:
    """Writes the longest of its words at each place, never across a space; two special tokens at the end."""

    def __init__(self, *words, space=False, starts=START, ends=END, bos=False):
        self.words = [*LETTERS, *words]
        self.special = {starts: len(self.words), ends: len(self.words) + 1}
        self.bos = self.added_bos = self.special[starts] if bos else None
        self.eos, self.eot = self.special[ends], None
        self.eog = frozenset({self.eos})
        self.size = len(self.words) + 2
        self.pieces = Pieces([*self.words, b"", b""])
        self.space = space

    def piece(self, token, *, special=False):
        if token < len(self.words):
            return self.words[token]
        return {number: name for name, number in self.special.items()}[token] if special else b""

    def tokenize(self, text, *, add_special, parse_special):
        if parse_special and text in self.special:
            return [self.special[text]]
        text = b" " + text if self.space else text
        tokens, at = [], 0
        while at < len(text):
            found = max((word for word in self.words if text.startswith(word, at)), key=len)
            tokens.append(self.words.index(found))
            at += len(found)
        return tokens


class Reciting:
    """A draft model that knows the text: it says the longest of its tokens with which the text goes on."""

    def __init__(self, vocab, text, **options):
        self.inner = ScriptedModel(vocab.size, **options)
        self.vocab, self.text, self.facts = vocab, text, self.inner.facts
        self.read = []

    def open(self):
        self.cache = self.inner.open()
        self.cache.forward = lambda tokens, parents: self.forward(tokens)
        return self.cache

    def forward(self, tokens):
        start = self.cache.length
        held = [*self.read[:start], *tokens.tolist()]
        self.read = held
        ScriptedModel.forward(self.inner, [self.tree(tokens)], Want.LOGITS)
        rows = [self.row(held[: start + i + 1]) for i in range(len(tokens))]
        return Output(np.array(rows, np.float32))

    def tree(self, tokens):
        return Tree(self.cache, tokens, chain_parents(len(tokens)))

    def row(self, held):
        written = b"".join(self.vocab.piece(token) for token in held)
        logits = np.full(self.vocab.size, -20.0, np.float32)
        if self.text.startswith(written):
            rest = self.text[len(written) :]
            for token, word in enumerate(self.vocab.words):
                if rest.startswith(word):
                    logits[token] = 5.0 * len(word)  # the longest is the likeliest
            if not rest:
                logits[self.vocab.eos] = 10.0
        return logits

    def close(self):
        self.inner.close()


def source_of(target, model):
    return DraftModel(
        lambda: model, n_ctx=4096, shared=0, costs=GuessCosts(1.0, 0.1, 0.1, 1.0), target=target
    )


def emitted(text, guesser, tokens):
    text.append(tokens)
    guesser.observe(Verified(tokens, EMPTY_DRAFT, NOTHING))


def written(vocab, text):
    return vocab.tokenize(text, add_special=False, parse_special=False)


SMALL = (b"th", b"he", b" th", b"in", b"er", b" ca", b"at", b"on")
LARGE = (
    b"the",
    b" the",
    b"there",
    b" there",
    b"therein",
    b" cat",
    b" cats",
    b"onion",
    "é".encode(),
    "日本".encode(),
)
TEXT = b"the cat therein and the cats there on onion there cat " * 12


class Undecided(Reciting):
    """Says one word, others nearly as soon."""

    def __init__(self, vocab, said):
        super().__init__(vocab, b"", max_width=8)
        self.said = said

    def row(self, held):
        logits = np.full(self.vocab.size, -20.0, np.float32)
        for word, logit in self.said.items():
            logits[self.vocab.words.index(word)] = logit
        return logits


@pytest.mark.parametrize(
    ("said", "proposed", "others"),
    [
        ({b" cat": 9.5, b" cats": 9.0, b" cab": 8.0}, b" cat", {b" ca": 1.5}),  # " cats" begins with the same
        ({b" cab": 9.5, b" cat": 9.0, b" car": 8.5}, b" ca", {b" cat": 0.5, b" car": 1.0}),
        ({b" car": 9.5, b" cat": 7.5, b" cab": 7.0}, b" car", {b" cat": 2.0, b" ca": 2.5}),
    ],
)
def test_runners_up_are_what_the_target_makes_of_them(said, proposed, others):
    target, draft = (
        Words(b"the", b" cat", b" car", b" ca"),
        Words(b"the", b" cat", b" car", b" cab", b" cats"),
    )
    text = Text(written(target, b"the the"))
    guess = source_of(target, Undecided(draft, said)).follow(text).guess([])
    assert target.piece(guess.token) == proposed
    assert {target.piece(token): behind for token, behind in guess.others} == pytest.approx(others)


@pytest.mark.parametrize("words", [(SMALL, (*SMALL, *LARGE)), (LARGE, SMALL)], ids=["more tokens", "others"])
@pytest.mark.parametrize("chain", [1, 3])
def test_who_knows_the_text_is_right_about_every_token(words, chain):
    target, draft = (Words(*each) for each in words)
    tokens = written(target, TEXT)
    guesser = source_of(target, Reciting(draft, TEXT, max_width=8)).follow(text := Text(tokens[:1]))
    wrong = []
    while text.position + chain < len(tokens):
        proposed = []
        for _ in range(chain):
            proposed.append(guesser.guess(proposed).token)
        right = tokens[text.position : text.position + chain]
        wrong.append(proposed != right)
        emitted(text, guesser, right)
    if words[0] == SMALL:
        assert not any(wrong)
    else:  # that the target merges what the draft model has no token for is learned, where it mostly does
        assert sum(wrong[len(wrong) // 2 :]) <= 4 and sum(wrong) <= 8


def test_a_word_that_the_target_has_half_written_is_not_taken_for_a_whole_one():
    target, draft = Words(b" th"), Words(b" th", b" there", b" x")
    text = Text(written(target, b"a th"))
    guesser = source_of(target, Reciting(draft, b"a there x", max_width=8)).follow(text)
    chain = []
    for byte in (b"e", b"r", b"e"):
        chain.append(guesser.guess(chain).token)
        assert target.piece(chain[-1]) == byte


class Unsure(Reciting):
    """Goes on from "a" with " cats" rather than " cat", and from there with " on"."""

    def row(self, held):
        written = b"".join(self.vocab.piece(token) for token in held)
        logits = np.full(self.vocab.size, -20.0, np.float32)
        said = {b"a": {b" cats": 5.0, b" cat": 4.5}, b"a cat": {b" on": 3.0, b" c": 2.0}}.get(written, {})
        for word, logit in said.items():
            logits[self.vocab.words.index(word)] = logit
        return logits


@pytest.mark.parametrize("temperature", [0.0, 0.01])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((b" cat", b" on"), b"s"),
        ((b" cat", b" cats", b" on"), b" on"),
        ((b" ca", b" cats", b" on"), b" on"),
        ((b" ca", b"ts", b" on"), b" on"),
    ],
    ids=["it cannot write that as one", "it can", "instead of two", "instead of the last of two"],
)
def test_a_word_that_the_target_would_have_written_otherwise_does_not_go_on(words, said, temperature):
    target, draft = Words(*words), Words(b" cat", b" cats", b" on", b" c")
    text = Text(written(target, b"a cat"), 7, temperature, NO_TRUNCATION)
    guesser = source_of(target, Unsure(draft, b"", max_width=8)).follow(text)
    assert target.piece(guesser.guess([]).token) == said


def test_special_tokens_meet_by_their_role():
    target, draft = Words(), Words(starts=b"<start_of_turn>", ends=b"<end_of_turn>", bos=True)
    byte_map = ByteMap(target, draft)
    start, end = target.special[START], target.special[END]
    assert byte_map.special_for_draft(start) == draft.special[b"<start_of_turn>"]
    assert byte_map.special_for_target(draft.eos) == end
    assert byte_map.special_for_draft(65) is None
    view = DraftText(byte_map)
    view.extend([start, 65, 66, end, 67])
    assert view.tokens == [draft.bos, 65, 66, draft.eos, 67]  # what begins both is there once
    text = Text(written(target, b"ab"))
    guesser = source_of(target, Reciting(draft, b"abc", max_width=8)).follow(text)
    first = guesser.guess([]).token
    assert target.piece(first) == b"c"
    assert guesser.guess([first]).token == end
    assert guesser.guess([first, end]) is None and guesser.ended
    emitted(text, guesser, [first])
    assert not guesser.ended


def test_the_space_before_a_text_is_no_part_of_it():
    target, draft = Words(b" a", b" b"), Words(b" a", b" b", space=True)
    byte_map = ByteMap(target, draft)
    assert byte_map.draft.of(b"a b", begins=True) == written(Words(b" a", b" b"), b" a b")
    assert byte_map.draft.of(b" b") == [draft.words.index(b" b")]
    view = DraftText(byte_map)
    view.extend(written(target, b"a b"))
    assert view.last == b" b" and view.rest == b""


WORDS = st.lists(
    st.sampled_from(["the", " cat", "é", "日本", "\n", " ", "🎉", "x", "\r\n", "\t"]), max_size=30
)


@settings(deadline=None, max_examples=60)
@given(WORDS, st.lists(st.integers(1, 4), min_size=1, max_size=30), st.booleans())
def test_the_text_of_the_draft_model_is_in_step_however_it_grows(words, steps, space):
    text = "".join(words).encode()
    target, draft = Words(*SMALL), Words(*LARGE, space=space)
    byte_map, tokens = ByteMap(target, draft), written(target, text)
    view, at = DraftText(byte_map), 0
    for n in steps * (1 + len(tokens) // len(steps)):
        kept = view.tokens[: view.extend(tokens[at : at + n])]
        at += n
        assert view.tokens[: len(kept)] == kept
        so_far = b"".join(target.piece(token) for token in tokens[:at])
        assert byte_map.draft.text(view.tokens).removeprefix(b" " * space) + view.rest == so_far
    whole_text = DraftText(byte_map)
    whole_text.extend(tokens)
    assert view.tokens == whole_text.tokens


@given(st.binary(max_size=12))
def test_nothing_is_lost_between_two_vocabularies(text):
    byte_map = ByteMap(Words(*SMALL), Words(*LARGE))
    for tokens in (byte_map.draft, byte_map.target):
        assert tokens.text(tokens.of(text)) == text
    continued = byte_map.target.text(byte_map.continued(text))
    assert continued == text[: whole(text)]


@pytest.mark.parametrize(
    ("text", "length"),
    [(b"", 0), (b"a", 1), (b"a\xc3", 1), (b"\xc3\xa9", 2), (b"\xe6\x97", 0), (b"\xf0\x9f\x8e", 0)],
)
def test_characters_that_are_cut(text, length):
    assert whole(text) == length


class Permuted(Words):
    """The tokens of another vocabulary in another order."""

    def __init__(self, vocab, order):
        super().__init__()
        self.other, self.back = vocab, np.argsort(order)
        self.words = [vocab.piece(int(token)) for token in order]
        self.size, self.pieces = vocab.size, Pieces(self.words)
        self.eos, self.special = int(self.back[0]), {}

    def tokenize(self, text, *, add_special, parse_special):
        return [
            int(self.back[token])
            for token in self.other.tokenize(text, add_special=False, parse_special=False)
        ]


class Copy(ScriptedModel):
    """Says what another model says, in a vocabulary whose order is another one."""

    def __init__(self, law, order):
        super().__init__(law.vocab.size)
        self.law, self.order, self.vocab = law, order, Permuted(law.vocab, order)

    def logits(self, context):
        return self.law.logits([int(self.order[token]) for token in context])[self.order]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_that_both_have_take_the_noise_of_the_target(temperature):
    """Of two models that say the same, one knows which of it is chosen if it knows the noise."""
    law = ScriptedModel(320, script=(), peak=0.3)
    right = []
    for seed in (11, 12):
        model = Copy(law, np.random.default_rng(0).permutation(320))
        text = Text([5, 6, 7], seed, temperature, NO_TRUNCATION)
        guesser = source_of(law.vocab, model).follow(text)
        right.append(0)
        for _ in range(100):
            ids, _ = rank_tokens(law.logits(text.tokens), 11, text.position, temperature, *NO_TRUNCATION, 1)
            guess = guesser.guess([])
            right[-1] += guess is not None and guess.token == ids[0]
            emitted(text, guesser, [int(ids[0]) or 9])
    assert right[0] > 50 and right[0] > 2 * right[1], right


def test_experience_of_merged_tokens_is_kept():
    merging = Merging()
    assert merging.risk(b"a", 0) == 0.0
    before = merging.risk(b"a", 5)
    for _ in range(20):
        merging.observe(b"a", 5, True)
    assert merging.risk(b"a", 5) > 0.8 > merging.risk(b"bc", 5) > before
    merging.observe(b"bc", 5, False)
    again = Merging.from_arrays(merging.to_arrays())
    for text in (b"a", b"bc"):
        assert again.risk(text, 5) == merging.risk(text, 5)
    with pytest.raises(ValueError, match="lack"):
        Merging.from_arrays({})
    damaged = {**merging.to_arrays(), "merging_pooled": np.full((12, 2), np.nan)}
    with pytest.raises(ValueError, match="cannot be"):
        Merging.from_arrays(damaged)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_says_what_one_would_that_had_read_everything_anew(temperature):
    """Conversations that go on, are edited, go back and outgrow the context of the draft model."""
    rng = np.random.default_rng(5)
    target = ScriptedVocab(320)
    model = ScriptedModel(350, seed=2, max_width=8, n_ctx=128)
    source = DraftModel(
        lambda: model, n_ctx=128, shared=0, costs=GuessCosts(1.0, 0.1, 0.1, 1.0), target=target
    )
    tokens = rng.integers(1, 320, 20).tolist()
    for _ in range(12):
        text = Text(list(tokens), 3, temperature, NO_TRUNCATION)
        guesser = source.follow(text)
        for _ in range(10):
            again = DraftModel(
                lambda: ScriptedModel(350, seed=2, max_width=8, n_ctx=256),
                n_ctx=128,
                shared=0,
                costs=GuessCosts(1.0, 0.1, 0.1, 1.0),
                target=target,
            )
            again.calibration.merging = Merging.from_arrays(source.merging.to_arrays())
            fresh = again.follow(Text(list(text.tokens), 3, temperature, NO_TRUNCATION))
            chain, anew = [], []
            for _ in range(3):
                guess, other = guesser.guess(chain), fresh.guess(anew)
                assert (guess and guess.token) == (other and other.token)
                if guess is None:
                    break
                assert guess.margin == pytest.approx(other.margin)
                chain.append(guess.token)
                anew.append(other.token)
            right = int(rng.integers(0, len(chain) + 1))
            emitted(text, guesser, [*chain[:right], int(rng.integers(1, 320))])
        guesser.close()
        kept = int(rng.integers(5, len(text.tokens)))
        tokens = [*text.tokens[:kept], *rng.integers(1, 320, int(rng.integers(1, 8))).tolist()]
