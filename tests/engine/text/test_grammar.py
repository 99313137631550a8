"""Grammars, on the vocabulary of a real model."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from specx.backends.errors import GrammarError
from specx.backends.llama.library import lib
from specx.engine.sampling import Sampler
from specx.engine.settings import SamplingSettings
from specx.engine.text.grammar import GrammarConstraint
from specx.engine.text.json_schema import grammar_of_schema


@pytest.fixture(scope="module")
def vocab(smollm2):
    library = lib()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(smollm2).encode(), parameters)
    yield library.llama_model_get_vocab(model)
    library.llama_model_free(model)


def piece(vocab, token):
    buffer = ctypes.create_string_buffer(256)
    n = lib().llama_token_to_piece(vocab, int(token), buffer, 256, 0, False)
    return buffer.raw[:n]


def allowed_pieces(vocab, constraint):
    ids = np.arange(lib().llama_vocab_n_tokens(vocab), dtype=np.int32)
    allowed = ids[constraint.allowed(ids)]
    return {piece(vocab, token): int(token) for token in allowed}


def test_allows_prefixes_of_what_may_follow(vocab):
    constraint = GrammarConstraint(vocab, 'root ::= "yes" | "no" [0-9]')
    pieces = allowed_pieces(vocab, constraint)
    assert set(pieces) == {b"y", b"ye", b"yes", b"n", b"no"}
    constraint.accept(pieces[b"no"])
    pieces = allowed_pieces(vocab, constraint)
    assert set(pieces) == {b"%d" % digit for digit in range(10)}
    constraint.close()
    constraint.close()


def test_the_end_is_allowed_exactly_when_the_grammar_is_complete(vocab):
    constraint = GrammarConstraint(vocab, 'root ::= "a" "b"?')
    end = next(t for t in range(100) if lib().llama_vocab_is_eog(vocab, t))
    pieces = allowed_pieces(vocab, constraint)
    assert not constraint.allowed(np.array([end], np.int32))[0]
    constraint.accept(pieces[b"a"])
    assert constraint.allowed(np.array([end], np.int32))[0]
    constraint.accept(end)


def test_a_token_out_of_place_is_an_error_not_a_crash(vocab):
    constraint = GrammarConstraint(vocab, 'root ::= "yes"')
    with pytest.raises(GrammarError, match="does not allow"):
        constraint.accept(allowed_pieces(vocab, GrammarConstraint(vocab, 'root ::= "no"'))[b"no"])


def test_another_root(vocab):
    constraint = GrammarConstraint(vocab, 'root ::= "a"\nother ::= "z"', root="other")
    assert set(allowed_pieces(vocab, constraint)) == {b"z"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root ::= "a" missing', "missing"),
        ('root ::= ("a"', "expecting"),
        ('start ::= "a"', "root"),
        ('root ::= root "a"', "left recursion"),
        ("", "empty"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said(vocab, text, reason, capfd):
    with pytest.raises(GrammarError, match=reason) as refused:
        GrammarConstraint(vocab, text)
    assert refused.value.hint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("schema", "reason", "hint"),
    [
        ('{"type":', "not valid JSON", "for example"),
        ("[]", "not a JSON object", "for example"),
        ('{"type": "telepathy"}', "telepathy", "use type"),
        ('{"$ref": "https://nowhere/x"}', r"remote schemas is not allowed$", "within the schema"),
        ('{"$ref": "#/nowhere"}', "nowhere", "within the schema"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema, reason, hint):
    with pytest.raises(GrammarError, match=reason) as refused:
        grammar_of_schema(schema)
    assert hint in refused.value.hint


def test_sampling_json_of_a_schema(vocab):
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}'
    for seed in range(3):
        constraint = GrammarConstraint(vocab, grammar_of_schema(schema))
        size = lib().llama_vocab_n_tokens(vocab)
        sampler = Sampler(SamplingSettings(seed=seed), size, constraint)
        text = b""
        rng = np.random.default_rng(seed)
        for position in range(30):
            token = sampler.sample(rng.normal(0, 1, size).astype(np.float32), position)
            sampler.accept(token)
            if lib().llama_vocab_is_eog(vocab, token):
                break
            text += piece(vocab, token)
        # A model that says anything may stay in the white space for ever; what it wrote is right even so.
        compact = b"".join(text.split())
        assert any(full.startswith(compact) for full in (b'{"n":1}', b'{"n":22}'))
