"""Vocabularies of real models: bytes of tokens are the bytes of the text, in every script."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specx.backends.errors import ModelError
from specx.backends.llama import vocab as vocab_module
from specx.backends.llama.libllama import lib
from specx.backends.llama.vocab import load_vocabulary
from specx.engine.text.stream import StreamDecoder

TEXTS = {
    "Latin": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça va? Żółć!",
    "Cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. Ґанок, їжак.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ὦ ἄνδρες Ἀθηναῖοι",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה. שָׁלוֹם",
    "Hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "Chinese": "天地玄黄。宇宙洪荒。日月盈昃。辰宿列张。𠮷野家、「论语」",
    "Japanese": "いろはにほへと ちりぬるを カタカナ、漢字「テスト」。",
    "Korean": "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "emoji": "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb, 🇪🇺 and e\u0301 combining",
    "code": "def f(x):\n\tif x:\n\t\treturn {'a': [1, 2],\t'b': None}  # done\r\n\n\n    pass\n",
    "spaces": "  leading,   runs of      spaces \u00a0\u2003\u3000 and trailing   ",
    "looks like a token": "<|im_start|> <start_of_turn> <bos> <0x41> </s> [INST]",
    "nothing": "",
    "one": "a",
}

# Without U+2581, which is how SentencePiece writes a space, and without what text has no use for: SmolLM2 has
# no tokens for some control characters and for the first bytes of the planes without characters.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"], exclude_characters="\u2581")


@pytest.fixture(scope="module")
def load():
    """LlamaVocab of a file, without its weights."""
    with ExitStack() as opened:
        yield lambda path: opened.enter_context(load_vocabulary(path))


@pytest.fixture(scope="module")
def smol(load, smollm2):
    return load(smollm2)


@pytest.fixture(scope="module")
def gemma(load, gemma3):
    return load(gemma3)


@pytest.fixture(params=["smol", "gemma"])
def vocab(request):
    return request.getfixturevalue(request.param)


def tokens_of(vocab, text, special=False):
    return vocab.tokenize(text.encode(), add_special=special, parse_special=special)


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_joined_are_the_text(vocab, name):
    text = TEXTS[name]
    tokens = tokens_of(vocab, text)
    joined = b"".join(map(vocab.piece, tokens)).decode()
    # A SentencePiece model may put a space before the first word.
    assert joined in (text, " " + text)
    assert all(0 <= token < vocab.size for token in tokens)


@pytest.mark.parametrize("name", TEXTS)
def test_streaming_never_shows_a_broken_character(vocab, name):
    decoder, shown = StreamDecoder(), ""
    for token in tokens_of(vocab, TEXTS[name]):
        text = decoder.feed(vocab.piece(token))
        assert "\ufffd" not in text
        shown += text
        assert TEXTS[name].startswith(shown) or (" " + TEXTS[name]).startswith(shown)
    assert decoder.flush() == ""
    assert shown.endswith(TEXTS[name])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(CHARACTERS, max_size=60))
def test_any_text_comes_back(vocab, text):
    assert b"".join(map(vocab.piece, tokens_of(vocab, text))).decode() in (text, " " + text)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_do_not_crash(vocab, data):
    tokens = vocab.tokenize(data, add_special=True, parse_special=True)
    assert all(0 <= token < vocab.size for token in tokens)


def test_long_text(vocab):
    text = TEXTS["Chinese"] * 300
    assert b"".join(map(vocab.piece, tokens_of(vocab, text))).decode().endswith(text)


def test_control_tokens_are_empty_unless_special(vocab):
    is_control = lib().llama_vocab_is_control
    control = [token for token in range(vocab.size) if is_control(vocab.pointer, token)]
    assert len(control) > 3
    assert {vocab.piece(token) for token in control} == {b""}
    assert all(vocab.piece(token, special=True) for token in control)


def test_markup_is_parsed_only_on_demand(smol):
    markup = "<|im_start|>user\nhi<|im_end|>"
    tokens = tokens_of(smol, markup, special=True)
    assert (tokens[0], tokens[-1]) == (smol.bos, smol.eos)
    assert b"".join(map(smol.piece, tokens)) == b"user\nhi"
    assert b"".join(smol.piece(token, special=True) for token in tokens).decode() == markup
    assert not set(tokens_of(smol, markup)) & {smol.bos, smol.eos}


def test_the_beginning_of_a_sequence(gemma, smol):
    assert tokens_of(gemma, "hi", special=True)[0] == gemma.bos
    assert gemma.bos not in tokens_of(gemma, "hi")
    assert gemma.piece(gemma.bos, special=True) == b"<bos>"
    assert tokens_of(smol, "hi", special=True) == tokens_of(smol, "hi")  # this model wants none


@pytest.mark.parametrize(
    ("name", "texts"),
    [("smol", ["<|im_end|>", "<|endoftext|>"]), ("gemma", ["<end_of_turn>", "<eos>"])],
)
def test_every_token_that_ends_a_generation(name, texts, request):
    vocab = request.getfixturevalue(name)
    ends = {vocab.tokenize(text.encode(), add_special=False, parse_special=True)[0] for text in texts}
    assert ends <= vocab.eog
    assert vocab.eos in vocab.eog
    is_eog = lib().llama_vocab_is_eog
    assert vocab.eog == {token for token in range(vocab.size) if is_eog(vocab.pointer, token)}
    assert all(vocab.piece(token) == b"" for token in vocab.eog)
    assert vocab.bos not in vocab.eog


def test_tokens_out_of_range(vocab):
    for token in (-1, vocab.size, 2**31 - 1):
        with pytest.raises(IndexError, match="not in a vocabulary"):
            vocab.piece(token)
    assert isinstance(vocab.piece(vocab.size - 1), bytes)


def test_pieces_longer_than_the_buffer(load, smollm2, smol, monkeypatch):
    monkeypatch.setattr(vocab_module, "_PIECE_BYTES", 1)
    small = load(smollm2)
    tokens = range(0, small.size, 97)
    assert [small.piece(token, special=True) for token in tokens] == [
        smol.piece(token, special=True) for token in tokens
    ]


def test_fingerprints_tell_vocabularies_apart(load, smol, gemma, smollm2_q4_0):
    assert load(smollm2_q4_0).fingerprint == smol.fingerprint
    assert gemma.fingerprint != smol.fingerprint
    assert (smol.size, gemma.size) == (49152, 262144)


def test_a_file_without_a_vocabulary_is_refused_by_name(tmp_path):
    path = tmp_path / "no-model.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError, match=r"could not load no-model\.gguf"), load_vocabulary(path):
        pass


def test_all_tokens_are_asked_for_at_once(vocab, monkeypatch):
    llama = lib()
    ends = frozenset(t for t in range(vocab.size) if llama.llama_vocab_is_eog(vocab.pointer, t))
    kinds = [llama.llama_vocab_get_attr(vocab.pointer, t) for t in range(vocab.size)]

    def each(*_arguments):
        raise AssertionError("a call of a token through ctypes")

    monkeypatch.setattr(llama, "llama_vocab_is_eog", each)
    monkeypatch.setattr(vocab, "_eog", None)
    assert vocab.eog == ends
    assert [token.id for token in vocab.special_tokens()] == [t for t, kind in enumerate(kinds) if kind & 25]
