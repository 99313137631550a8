"""Grammars, on the vocabulary of a real model."""

from __future__ import annotations

import ctypes
import os
import random

import numpy as np
import pytest

from specx.backends.errors import GrammarError
from specx.backends.llama.libllama import lib
from specx.engine.sampling import Sampler, Unending
from specx.engine.settings import SamplingSettings
from specx.engine.text.alphabet import Alphabet
from specx.engine.text.grammar import GrammarConstraint
from specx.engine.text.grammar_syntax import check_syntax
from specx.engine.text.json_schema import grammar_of_schema


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


def test_a_backslash_before_a_u_begins_no_escape(texts):
    assert texts.accept(r'root ::= "\\ud83d" "\u00e9\U0001F600" [^\ud800-\udfff]', "\\ud83dé😀x")


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
        ('root ::= root "a"', "left recursion: rule `root`"),
        ('root ::= a "x" | "y"\na ::= b\nb ::= "z"? a', "left recursion"),
        ('root ::= "a" ("b"? "c"*)*', "left recursion: rule `root` repeats"),
        ("", "empty"),
        ('root ::= "a" root', "no text completes the grammar: rule `root`"),
        ('root ::= "a"{3,2}', r"the repetition \{3,2\} in the grammar ends before it begins"),
        ('root ::= "a" b{ 4 , 3 }\nb ::= "c"\n@', "ends before it begins"),
        ('root ::= "a"{0,2001}', "goes beyond 2000"),
        ('root ::= "a"{99999999999999999999}', "goes beyond 2000"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "parentheses more than 1000 deep"),
        ("root ::= " + "(" * 60_000 + "@", "parentheses more than 1000 deep"),
        (
            "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(20_000)) + 'r20000 ::= "a"',
            "10000 rules",
        ),
        ('root ::= "z" x{1999}\nx ::= y{1999}\ny ::= "a" | ""', "rule `y`, which may be empty, up to 1999"),
        ('root ::= "z" ("a"+ | | "ab"{2}){255} "0"', "repeats a group, which may be empty, up to 255 times"),
        ('root ::= "z" "a"?{3}{200}', "repeats a group, which may be empty, up to 600 times"),
        (
            "root ::= " + '"a"? ' * 101,
            "more than 100 items in a row that may each be left out, in rule `root`",
        ),
        ('root ::= "z" x x x "b"\nx ::= ' + '"a"? ' * 40, "more than 100 items in a row"),
        ('root ::= "z" (x | "b") \nx ::= y y | "c"\ny ::= ' + '"a"* ' * 51, "more than 100 items in a row"),
        ('root ::= x{1999}\nx ::= y{1999}\ny ::= "a" | ""', "may be empty, up to 1999 times"),
        ("root ::= " + " | ".join(f'"{i}"' for i in range(20_001)), "20000 alternatives"),
        ('root ::= "caf\udce9"', "not valid UTF-8: .* at character 13"),
        ('root ::= "a\0b"', "NUL"),
        (r'root ::= "\ud83d\ude00"', r"has \\ud83d in a literal, which is no character"),
        (r'root ::= ["\\] "\\\uDC00"', "which is no character"),
        (r'root ::= "\U00110000"', "which is no character"),
        ('root ::= "a', "cannot be used"),
        ('root ::= "a" )', "cannot be used"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said(vocab, text, reason, capfd):
    with pytest.raises(GrammarError, match=reason) as refused:
        GrammarConstraint(vocab, text)
    assert refused.value.hint
    assert capfd.readouterr().err == ""


PIECES = [
    *('"a"', '""', '"\\n"', '"\\q"', '"\\x4"', '"é', "[a-z]", "[^]", "[]", "[a-]", "[-a]"),
    *("[a-\\]]", "[\\", '[^"]', "a", "root", "b-2", "_", ".", "!", "<", "@", "\f", "\xa0"),
    *("<[5]>", "<[5>", "<[99999999999]>", "<|im_end|>", "<no>", "!<[7]>", "(", ")", "|", "*", "+", "?"),
    *("{2}", "{0}", "{0,0}", "{1,}", "{ 1 , 3 }", "{,3}", "{x}", "{2000}", "{2001,}", "::=", "\n", "\r\n"),
    *("\r", " ", "\t", "# it is\n", "#", "\na ::= ", "\nroot ::= "),
]


def test_what_the_parser_of_llama_cpp_accepts_is_what_is_accepted(vocab, llama_vocab, capfd):
    """Its parser tells what is wrong on the standard error of the process, so it must never be asked."""
    dice, library, counts = random.Random(7), lib(), [0, 0]

    def is_token(text):
        return len(llama_vocab.tokenize(text.encode(), add_special=False, parse_special=True)) == 1

    for _ in range(3000):
        length = dice.choice((1, 2, 3, 5, 8))
        text = "root ::= " + "".join(dice.choices(PIECES, k=length)) + dice.choice(("", '\na ::= "x"'))
        try:
            check_syntax(text, is_token)
            accepted = True
        except GrammarError as refused:
            accepted = False
            assert refused.message.startswith("the grammar cannot be used: ")
        sampler = library.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if sampler:
            library.llama_sampler_free(sampler)
        said = capfd.readouterr().err
        parsed = "error parsing grammar" not in said or "Undefined rule" in said
        assert accepted == parsed, (text, said)
        counts[accepted] += 1
    assert min(counts) > 500, counts


def test_standard_error_is_left_alone(vocab, monkeypatch):
    def forbidden(*_arguments):
        raise AssertionError("others write there meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", forbidden)
        GrammarConstraint(vocab, 'root ::= "a"').close()
        for wrong in ('root ::= "a', "root := x", 'a ::= "x"'):
            with pytest.raises(GrammarError, match="cannot be used"):
                GrammarConstraint(vocab, wrong)


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "a", "aa"),
        ('root ::= "a"{1999,2000}', "a" * 2000, "a" * 1998),
        ('root ::= ("a"{3}){2} # (((', "aaaaaa", "aaa"),
        (r'root ::= [(] "{3,2}" [^"\\\]]+ ("c" | "b")', "({3,2}xb", '({3,2}"b'),
        ('root ::= "a" root | ""', "aaa", "b"),
        ("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9000)) + 'r9000 ::= "a"', "a", ""),
    ],
)
def test_grammars_near_the_limits_work(texts, grammar, right, wrong):
    assert texts.accept(grammar, right)
    assert not texts.accept(grammar, wrong)


def test_sampling_json_of_a_schema(vocab):
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}'
    for seed in range(3):
        constraint = GrammarConstraint(vocab, grammar_of_schema(schema))
        size = lib().llama_vocab_n_tokens(vocab)
        sampler = Sampler(SamplingSettings(seed=seed), size, constraint)
        text = b""
        rng = np.random.default_rng(seed)
        for position in range(60):
            token = sampler.sample(rng.normal(0, 1, size).astype(np.float32), position)
            sampler.accept(token)
            if lib().llama_vocab_is_eog(vocab, token):
                break
            text += piece(vocab, token)
        assert b"".join(text.split()) in (b'{"n":1}', b'{"n":22}')


@pytest.fixture(scope="session")
def llama_vocab(smollm2):
    from specx.backends.llama.vocab import LlamaVocab

    library = lib()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(smollm2).encode(), parameters)
    yield LlamaVocab(model)
    library.llama_model_free(model)


@pytest.fixture(scope="session")
def alphabet(llama_vocab):
    return Alphabet(llama_vocab)


def test_single_bytes_have_tokens_as_far_as_there_are_any(llama_vocab, alphabet):
    pieces = {llama_vocab.piece(int(token)) for token in alphabet.all if int(token) not in alphabet.ends}
    every = {llama_vocab.piece(token) for token in range(llama_vocab.size) if token not in llama_vocab.eog}
    single = {piece for piece in every if len(piece) == 1}
    assert (
        pieces <= single and len(single - pieces) <= 2
    )  # NUL, and bytes that are always part of a longer token
    assert set(alphabet.few.tolist()) <= set(alphabet.all.tolist())


@pytest.mark.parametrize(
    ("grammar", "emitted", "forced"),
    [
        ('root ::= "a long name" | "a long time"', "", b"a long "),
        ('root ::= "a long name" | "a long time"', "a long n", b"ame"),
        ('root ::= "yes" [0-9]', "", b"yes"),
        ('root ::= "yes"?', "", b""),  # it may end
        ('root ::= "yes" "!"?', "", b"yes"),
        ('root ::= "caf" [⟰] "s"', "", "caf⟰s".encode()),
        ('root ::= "x" | [^a-z]', "", b""),
        ('root ::= "b" [a-z]{2} "end"', "bxy", b"end"),
        ('root ::= "' + "ab" * 100 + '"', "", b"ab" * 32),  # so much is looked for at once
    ],
)
def test_what_is_forced(llama_vocab, alphabet, grammar, emitted, forced):
    constraint = GrammarConstraint(llama_vocab.pointer, grammar, alphabet=alphabet)
    for token in llama_vocab.tokenize(emitted.encode(), add_special=False, parse_special=False):
        constraint.accept(token)
    assert constraint.forced() == forced
    assert GrammarConstraint(llama_vocab.pointer, grammar).forced() == b""  # nothing to probe it with


def test_what_is_forced_is_used_up_and_probing_changes_nothing(llama_vocab, alphabet, monkeypatch):
    grammar = 'root ::= "{" "customer_identifier" ":" [0-9]+ "}"'
    constraint = GrammarConstraint(llama_vocab.pointer, grammar, alphabet=alphabet)
    plain = GrammarConstraint(llama_vocab.pointer, grammar)
    probes, probe = [], constraint._probe
    monkeypatch.setattr(constraint, "_probe", lambda: probes.append(1) or probe())
    everything = np.arange(llama_vocab.size, dtype=np.int32)
    left = b"{customer_identifier:"
    for token in llama_vocab.tokenize(left, add_special=False, parse_special=False):
        assert constraint.forced() == left and len(probes) == 1
        assert (constraint.allowed(everything) == plain.allowed(everything)).all()
        constraint.accept(token)
        plain.accept(token)
        left = left[len(llama_vocab.piece(token)) :]
    assert left == constraint.forced() == constraint.forced() == b"" and len(probes) == 2
    for token in llama_vocab.tokenize(b"12", add_special=False, parse_special=False):
        constraint.accept(token)
        plain.accept(token)
    assert (constraint.allowed(everything) == plain.allowed(everything)).all()
    unending = Unending(constraint, llama_vocab.eog, llama_vocab.size)
    assert unending.forced() == b""


def test_few_tokens_are_asked_about_to_find_what_is_forced(llama_vocab, alphabet, monkeypatch):
    constraint = GrammarConstraint(llama_vocab.pointer, 'root ::= "name" [a-z]*', alphabet=alphabet)
    asked, allowed = [], constraint._allowed
    monkeypatch.setattr(constraint, "_allowed", lambda *given: asked.append(len(given[1])) or allowed(*given))
    assert constraint.forced() == b"name"
    assert max(asked) <= 256 + len(alphabet.ends) and len(asked) == 2 * 4 + 1
    assert asked[-1] < 20  # a choice is found at once
