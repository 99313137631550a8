"""Which rows are kept when a draft model is trimmed, and which models can be."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest

from specx.backends.base import Facts, Output
from specx.backends.errors import ModelError, UsageError
from specx.backends.gguf.file import read_gguf
from specx.drafters.make.trim import check_trimmable, kept_rows, row_scores, write_trimmed

KINDS = gguf.TokenType
TOKENS = (
    [("<s>", KINDS.CONTROL), ("</s>", KINDS.CONTROL), ("<unused0>", KINDS.CONTROL), ("gone", KINDS.UNUSED)]
    + [("\n\n", KINDS.USER_DEFINED), ("<0x0A>", KINDS.BYTE), ("a", KINDS.NORMAL), ("\u2581", KINDS.NORMAL)]
    + [("\u0436", KINDS.NORMAL), ("unused", KINDS.NORMAL)]
    + [(f"word{i}", KINDS.NORMAL) for i in range(86)]
)
BASIC = [0, 1, 4, 5, 6, 7]


@pytest.fixture
def listed(tmp_path):
    """A model of 96 tokens of all kinds."""
    path = tmp_path / "listed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in TOKENS])
    writer.add_token_types([kind for _, kind in TOKENS])
    writer.add_tensor("token_embd.weight", np.zeros((len(TOKENS), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def test_the_best_rows_are_kept_and_whatever_any_text_needs(listed):
    scores = np.zeros(96)
    scores[[2, 3, 8, 9, 40, 95]] = [9.0, 8.0, 3.0, 2.0, 5.0, 1.0]  # 2 and 3 are never written
    scores[50:90] = np.linspace(0.01, 0.09, 40)  # chance
    kept = kept_rows(listed, scores, 32).tolist()
    assert kept == sorted(kept) and len(kept) == 32
    assert set(kept) == {*BASIC, 8, 9, 40, 95, *range(10, 32)}  # then those of the lowest ids


def test_rows_come_in_whole_groups(listed):
    assert len(kept_rows(listed, np.zeros(96), 33)) == 64


def test_a_model_without_types_has_normal_tokens_only(listed):
    kept = kept_rows(replace(listed, token_type_span=(0, 0)), np.arange(96.0), 32).tolist()
    assert {6, 7} <= set(kept) and 0 not in kept and 95 in kept


def test_too_few_rows_are_refused(listed):
    with pytest.raises(UsageError, match="6 tokens are control tokens, bytes and characters"):
        kept_rows(listed, np.zeros(96), 5)


@pytest.mark.parametrize(
    ("changes", "keep", "error", "match"),
    [
        ({}, 96, UsageError, "has 96 tokens, and 96 are to be kept"),
        ({"architecture": "mamba"}, 32, ModelError, "its architecture is mamba"),
        ({"tensors": ()}, 32, ModelError, "cannot be trimmed"),
    ],
)
def test_what_cannot_be_trimmed(listed, changes, keep, error, match):
    check_trimmable(listed, 32)
    with pytest.raises(error, match=match) as caught:
        check_trimmable(replace(listed, **changes), keep)
    assert caught.value.hint


def test_a_trimmed_model_is_not_trimmed_again(listed, tmp_path):
    write_trimmed(tmp_path / "t.gguf", listed, np.arange(32, dtype=np.int32), listed, {})
    with pytest.raises(ModelError, match="trimmed already") as caught:
        check_trimmable(read_gguf(tmp_path / "t.gguf"), 16)
    assert "listed.gguf" in caught.value.hint


def test_scores_are_occurrences_and_probabilities():
    """Of a model that finds a token likelier the nearer its id is to that of the last one."""
    vocabulary, read = 5, []

    class Near:
        facts = Facts(n_ctx=64, max_width=2, max_leaves=1)
        n_ctx, max_width, length = 64, 2, 0

        def open(self):
            return self

        def rewind(self, length):
            read.append([])

        def forward(self, tokens, parents):
            read[-1] += tokens.tolist()
            return Output(-np.abs(np.arange(5)[None, :] - tokens[:, None]).astype(np.float32) * 1.5)

        def keep(self, rows):
            pass

        def close(self):
            read.append("closed")

    told = []
    scores = row_scores(Near(), [[0, 1, 4], [4]], vocabulary, lambda *done: told.append(done))
    assert read == [[0, 1, 4], [4], "closed"] and told == [(3, 4), (4, 4)]
    expected = np.array([1.0, 1, 0, 0, 2])
    for token in (0, 1, 4, 4):
        likely = np.exp(-1.5 * np.abs(np.arange(5) - token))
        expected += likely / likely.sum()
    assert np.allclose(scores, expected, rtol=1e-6)
