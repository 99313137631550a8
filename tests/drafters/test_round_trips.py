"""Text through two vocabularies and back, over all pairs of llama.cpp's: nothing is lost, nothing made up.

`scripts/fetch_vocabularies.py` gets the vocabularies. SPECX_ROUND_TRIPS=N tries N times as many texts.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.base import Output
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.scripted import ScriptedModel
from specx.drafters import model, translated
from specx.drafters.base import EMPTY_DRAFT, Text, Verified
from specx.drafters.byte_map import ByteMap, Tokens
from specx.drafters.draft_text import FAR, DraftText
from specx.drafters.guesser import GuessCosts
from specx.drafters.model import DraftModel

TEXTS = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))
EFFORT = int(os.environ.get("SPECX_ROUND_TRIPS", "1"))
BYTE_PAIRS = ("aquila", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "gpt-neox")
BYTE_PAIRS += ("gemma-4", "llama-bpe", "mpt", "qwen2", "qwen35", "refact", "starcoder")
SENTENCE_PIECES = ("baichuan", "llama-spm", "phi-3")
NAMES = (*BYTE_PAIRS, *SENTENCE_PIECES)
SPACE_MARK = "\u2581"  # how SentencePiece writes a space: it cannot be told from one
NOTHING = Output(np.zeros((1, 1), np.float32))

characters = st.characters(exclude_categories=["Cs", "Cn", "Co"], exclude_characters=SPACE_MARK)


@pytest.fixture(scope="module")
def vocabs(vocabulary_files):
    """Name -> Tokens of all vocabularies that lose nothing."""
    missing = set(NAMES) - set(vocabulary_files)
    if missing:
        pytest.skip(f"no vocabularies {', '.join(sorted(missing))}")
    with ExitStack() as opened:
        yield {name: opened.enter_context(load_vocabulary(vocabulary_files[name])) for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def maps(request, vocabs):
    """Draft vocabulary -> ByteMap, for one target vocabulary after the other."""
    return {name: ByteMap(vocabs[request.param], vocab) for name, vocab in vocabs.items()}


@pytest.fixture(scope="module", params=NAMES)
def tokens(request, vocabs):
    return Tokens(vocabs[request.param])


def chosen(maps, salt, least=0):
    """Draft vocabularies, with a map, some texts and a random generator for each: every text has its turn."""
    names = [name for name, text in TEXTS.items() if SPACE_MARK not in text and len(text) >= least]
    for i, (draft, byte_map) in enumerate(maps.items()):
        rng = np.random.default_rng([salt, i, byte_map.target.vocab.size])
        for name in rng.choice(names, EFFORT, replace=False) if len(names) > EFFORT else names:
            yield draft, byte_map, TEXTS[str(name)].encode(), rng


def has_all_bytes(tokens):
    return all(tokens.pieces.find(bytes([byte])) >= 0 for byte in range(256))


def is_part_of(part, text):
    """Whether `part` is `text` with some bytes left out."""
    left = iter(text)
    return all(byte in left for byte in part)


def pieces_of(rng, sequence):
    """The sequence cut at random places."""
    cuts = sorted({0, len(sequence), *rng.integers(0, len(sequence) + 1, 5).tolist()})
    return [sequence[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if SPACE_MARK not in text])
def test_no_vocabulary_loses_text(vocabs, name):
    text = TEXTS[name].encode()
    for vocabulary in map(Tokens, vocabs.values()):
        assert vocabulary.text(vocabulary.of(text)) == text
        begun = vocabulary.text(vocabulary.of(text, begins=True))
        assert begun == (b" " + text if vocabulary.leads else text)


@settings(max_examples=20 * EFFORT)
@given(text=st.text(characters, min_size=1, max_size=40))
def test_any_text_comes_back_if_every_byte_has_a_token(tokens, text):
    data = text.encode()
    found = tokens.text(tokens.of(data))
    assert found == data if has_all_bytes(tokens) else is_part_of(found, data)


@settings(max_examples=20 * EFFORT)
@given(data=st.binary(min_size=1, max_size=24))
def test_bytes_that_are_no_text_lose_those_without_a_token(tokens, data):
    found = tokens.text(tokens.of(data))
    assert found == data if has_all_bytes(tokens) else is_part_of(found, data)
    assert tokens.text(tokens.spelled(data)) in (data, b"")


def test_tokens_that_are_the_same_have_the_same_bytes(maps):
    for byte_map in maps.values():
        ours, theirs = byte_map.target.pieces, byte_map.draft.pieces
        for token in np.random.default_rng(1).integers(0, len(theirs), 100).tolist():
            piece, found = theirs.piece(token), int(byte_map.as_target[token])
            same = ours.find(piece)
            assert found == (same if same >= 0 else len(ours) + token)
            assert same < 0 or ours.piece(same) == piece


def test_what_the_draft_model_writes_comes_back_as_what_the_target_writes(maps):
    for _, byte_map, text, _ in chosen(maps, 1):
        written = byte_map.draft.text(byte_map.draft.of(text))
        assert written == text
        assert byte_map.continued(written) == byte_map.target.of(text)


def test_a_text_that_grows_is_tokenized_as_one_that_was_there_at_once(maps):
    for draft, byte_map, text, rng in chosen(maps, 2):
        ours = byte_map.target.of(text, begins=True)
        view = DraftText(byte_map)
        before = list(view.tokens)
        first = len(before)
        for piece in pieces_of(rng, ours):
            changed = view.extend(piece)
            assert view.tokens[:changed] == before[:changed]
            before = list(view.tokens)
        assert view.rest == b""
        assert view.tokens[first:] == byte_map.draft.of(text, begins=True), draft


@pytest.mark.parametrize("draft", NAMES)
def test_a_long_text_without_spaces_is_tokenized_from_a_place_near_its_end(vocabs, draft):
    byte_map = ByteMap(vocabs["command-r"], vocabs[draft])
    text = "\n".join(TEXTS[name].replace(" ", "") for name in ("Chinese", "Arabic", "runs", "Thai")).encode()
    view, said, again = DraftText(byte_map), b"", 0
    for token in byte_map.target.of(text):
        length = len(view.tokens)
        again = max(again, length - view.extend([token]))
        said += byte_map.target.pieces.piece(token)
        written = byte_map.draft.text(view.tokens)[byte_map.draft.leads :]
        assert written + view.rest == said
    assert again <= FAR + 4 < len(view.tokens) / 2


def test_any_tokens_are_followed_byte_by_byte(maps):
    """Tokens in no sensible order: parts of characters, special ones, spaces where they do not belong."""
    for _, byte_map, _, rng in chosen(maps, 3):
        ours, theirs = byte_map.target.pieces, byte_map.draft
        said = [
            token
            for token in rng.integers(0, len(ours), 40).tolist()
            if b"\xe2\x96\x81" not in ours.piece(token)
        ]
        view, expected = DraftText(byte_map), b""
        for piece in pieces_of(rng, said):
            view.extend(piece)
        for token in said:
            expected += ours.piece(token)
        found = theirs.text(view.tokens) + view.rest
        spaceless = bytes(byte for byte in expected if byte != 0x20)
        found = bytes(byte for byte in found if byte != 0x20)
        assert found == spaceless if has_all_bytes(theirs) else is_part_of(found, spaceless)


class Writer(ScriptedModel):
    """Knows what is written, and goes on with its own tokens of the rest.

    Args:
        tokens: of its vocabulary.
    """

    def __init__(self, tokens):
        super().__init__(2, order=1 << 20, max_width=8, max_rows=8, max_texts=1)
        self.tokens, self.vocab = tokens, tokens.vocab
        self.text = b""
        self._buffer = np.empty((8, self.vocab.size), np.float32)
        self._row, self._last = np.zeros(self.vocab.size, np.float32), 0

    def check_tokens(self, tokens):
        pass

    def forget_texts(self):
        for cache in list(self._open):
            cache.close()

    def logits(self, context):
        said = self.tokens.text([token for token in context if token != self.vocab.bos])
        if self.tokens.leads:
            said = said.removeprefix(b" ")
        following = self.tokens.of(self.text[len(said) :])
        self._row[self._last] = 0.0
        self._last = following[0] if following and self.text.startswith(said) else self.vocab.eos
        self._row[self._last] = 50.0
        return self._row


@pytest.fixture(scope="module")
def writers(vocabs):
    return {name: Writer(Tokens(vocab)) for name, vocab in vocabs.items()}


def proposed(guesser, text, ours, start):
    """Ask for chains of up to 6 tokens all through the text; returns how many were right, and wrong."""
    right = wrong = 0
    at = start
    while at < len(ours):
        chain = []
        while len(chain) < min(6, len(ours) - at) and not guesser.ended:
            guess = guesser.guess(chain)
            if guess is None or guess.token != ours[at + len(chain)]:
                wrong += 1
                break
            chain.append(guess.token)
        right += len(chain)
        emitted = ours[at : at + len(chain) + 1]
        at += len(emitted)
        text.append(emitted)
        guesser.observe(Verified(emitted, EMPTY_DRAFT, NOTHING))
    return right, wrong


def asked(byte_map, writer, data, start, monkeypatch):
    """Right and wrong proposals for `data` from a token on, by the model that knows it."""
    ours = byte_map.target.of(data, begins=True)[:30]
    writer.text = byte_map.target.text(ours)[byte_map.target.leads :]
    monkeypatch.setattr(model, "ByteMap", lambda *_: byte_map)
    costs = GuessCosts(1.0, 0.1, 0.1, 1.0)
    size, target = writer.vocab.size, byte_map.target.vocab
    source = DraftModel(lambda: writer, n_ctx=4096, shared=size, costs=costs, target=target)
    start = min(start, len(ours) - 1)
    text = Text(ours[:start])
    found = proposed(source.follow(text), text, ours, start)
    assert not source.failed, source.failure
    writer.forget_texts()
    return found


def test_a_model_that_knows_the_text_has_its_tokens_proposed(maps, writers, monkeypatch):
    """What it writes is split at other places than the target's; nearly all of it gets through."""
    monkeypatch.setattr(translated, "LOOK_AHEAD", -1.0)  # it is always asked how a word goes on,
    monkeypatch.setattr(translated, "MOST_CALLS", 64)  # however many tokens of its own that takes
    counts = np.zeros(2, int)
    for draft, byte_map, data, rng in chosen(maps, 4, least=40):
        counts += asked(byte_map, writers[draft], data, int(rng.integers(1, 20)), monkeypatch)
    assert counts[0] > 30 * counts[1]


def test_a_text_that_stops_within_its_first_character(vocabs, writers, monkeypatch):
    """Models without a token that begins a text have nothing to go on from then, and with one they have."""
    for draft, vocab in vocabs.items():
        byte_map = ByteMap(vocabs["gpt-2"], vocab)
        right, wrong = asked(byte_map, writers[draft], "\U0001d11e\U0001d11e!".encode(), 1, monkeypatch)
        assert right > 3 > wrong, draft
