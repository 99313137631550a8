"""Vocabularies of byte pairs: long runs of one kind of character, and what stands before and after a text."""

from __future__ import annotations

from contextlib import ExitStack

import gguf
import pytest

from specx.backends.errors import ModelError
from specx.backends.llama.vocab import load_vocabulary

LONG = 120_000  # bytes; llama.cpp's splitting of them would not fit into 8 MiB of stack
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
RUNS = ("A", "a", "1", " ", "!", "\n", "一", "é")


def byte_texts():
    """The 256 characters that stand for bytes in a vocabulary of byte pairs."""
    others = [b for b in range(256) if b not in BYTES]
    of = {b: chr(b) for b in BYTES} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [of[b] for b in range(256)]


def write(path, pre, model="gpt2", **flags):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<s>", "</s>", *byte_texts(), "AA"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["A A"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@pytest.fixture
def load(tmp_path):
    with ExitStack() as opened:

        def load(pre, model="gpt2", **flags):
            path = write(tmp_path / f"{pre}.gguf", pre, model, **flags)
            return opened.enter_context(load_vocabulary(path))

        yield load


@pytest.mark.parametrize(
    ("pre", "runs"),
    [
        ("gpt-4o", RUNS),  # the deepest of all
        *((pre, RUNS[:1]) for pre in ("tekken", "granite-embed-multi-97m", "tiny_aya", "exaone-moe")),
        *((pre, RUNS[:1]) for pre in ("poro-chat", "deepseek-coder", "deepseek-v3", "youtu", "afmoe")),
    ],
)
def test_a_long_run_of_one_kind_of_character(load, pre, runs):
    vocab = load(pre)
    for run in runs:
        data = (run * LONG).encode()[:LONG]
        tokens = vocab.tokenize(data, add_special=False, parse_special=False)
        assert b"".join(map(vocab.piece, tokens)) == data


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_text_that_is_to_be_continued_does_not_end(load, adds_bos, adds_eos):
    vocab = load("gpt-2", add_bos_token=adds_bos, add_eos_token=adds_eos)
    plain = vocab.tokenize(b"hi", add_special=False, parse_special=False)
    assert len(plain) == 2
    assert vocab.tokenize(b"hi", add_special=True, parse_special=True) == [0] * adds_bos + plain
    assert vocab.added_bos == (0 if adds_bos else None)
    written = vocab.tokenize(b"hi</s>", add_special=True, parse_special=True)
    assert written == [0] * adds_bos + plain + [1]  # what was asked for stays


def test_a_text_that_has_no_tokens(load):
    vocab = load("none", "rwkv")  # its vocabulary is another kind of list
    with pytest.raises(ModelError, match="no token for a part"):
        vocab.tokenize("\u4e00 b".encode(), add_special=True, parse_special=True)
