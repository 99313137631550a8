"""Model files that are large enough to be read, not to be run, and texts held against a grammar."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest

WORDS = [f"word{i}" for i in range(64)]
LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write(
    path,
    width,
    *,
    tokens=WORDS,
    layers=1,
    architecture="llama",
    recurrent=False,
    tokenizer="gpt2",
    pooling=None,
):
    writer = gguf.GGUFWriter(path, architecture)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_head_count(1)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), width), np.float32))
    writer.add_tensor("output.weight", np.zeros((len(tokens), width), np.float32))
    for i in range(layers):
        for name in ("ssm_in", "ssm_out") if recurrent else LAYER:
            writer.add_tensor(f"blk.{i}.{name}.weight", np.zeros((width, width), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@pytest.fixture
def write_model():
    """Writes a GGUF file of some layers of zeros, `width` wide; returns its path."""
    return write


@pytest.fixture(scope="session")
def vocab(smollm2):
    """The vocabulary of a real model, as llama.cpp has it."""
    from specx.backends.llama.libllama import lib

    library = lib()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(smollm2).encode(), parameters)
    yield library.llama_model_get_vocab(model)
    library.llama_model_free(model)


class Texts:
    """Texts of a grammar, by llama.cpp's word, through the tokens of one byte or character."""

    def __init__(self, vocab):
        from specx.backends.llama.libllama import lib

        library, buffer = lib(), ctypes.create_string_buffer(256)
        self.vocab, self.tokens, characters = vocab, {}, {}
        for token in range(library.llama_vocab_n_tokens(vocab)):
            if library.llama_vocab_is_eog(vocab, token):
                self.tokens.setdefault(b"", token)
                continue
            length = library.llama_token_to_piece(vocab, token, buffer, 256, 0, False)
            piece = buffer.raw[: max(length, 0)]
            if length == 1:
                self.tokens.setdefault(piece, token)
            elif (
                length > 1
                and len(piece.decode("utf-8", "ignore").encode()) == length
                and len(piece.decode()) == 1
                and len(characters) < 20
            ):
                characters.setdefault(piece, token)
        self.tokens |= characters
        self.pieces, self.ids = list(self.tokens), np.array([*self.tokens.values()], np.int32)

    def constraint(self, grammar):
        from specx.engine.text.grammar import GrammarConstraint

        return GrammarConstraint(self.vocab, grammar)

    def accept(self, grammar, text):
        """Whether `text` follows the grammar from its beginning to its end."""
        constraint = self.constraint(grammar)
        for byte in text.encode():
            token = self.tokens[bytes([byte])]
            if not constraint.allowed(np.array([token], np.int32))[0]:
                return False
            constraint.accept(token)
        return bool(constraint.allowed(np.array([self.tokens[b""]], np.int32))[0])

    def random(self, grammar, choice, limit=400):
        """A text of the grammar, chosen by `choice(options)`, or None if it has not ended within the limit.

        What closes something becomes likelier the longer the text is.
        """
        constraint, text = self.constraint(grammar), b""
        for length in range(limit):
            allowed = constraint.allowed(self.ids)
            options = [piece for piece, fits in zip(self.pieces, allowed, strict=True) if fits]
            # llama.cpp takes an overlong sequence for a character: single bytes only if there is no choice.
            options = [piece for piece in options if piece < b"\x80" or len(piece) > 1] or options
            closing = [piece for piece in options if piece in (b"", b'"', b"]", b"}")]
            if closing and choice([True] * (1 + length // 20) + [False]):
                options = closing
            piece = choice(options)
            if not piece:
                return text.decode()
            constraint.accept(self.tokens[piece])
            text += piece
        return None


@pytest.fixture(scope="session")
def texts(vocab):
    return Texts(vocab)
