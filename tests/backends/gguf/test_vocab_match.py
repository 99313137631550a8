"""Two models share a vocabulary if their token lists agree, but for padding at the end of one."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.vocab_match import match_vocabularies

WORDS = [f"word{i}" for i in range(40)]
NORMAL, CONTROL, UNUSED = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED


@pytest.fixture
def model(tmp_path):
    """Writes the header of a model with some tokens."""

    def write(tokens, types=None):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_tokenizer_model("gpt2")
        if tokens:
            writer.add_token_list(tokens)
        if types:
            writer.add_token_types(types)
        writer.add_tensor("blk.0.attn_k.weight", np.zeros((4, 4), np.float32))
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
        return read_gguf(path)

    return write


def test_the_same_list(model):
    match = match_vocabularies(model(WORDS), model(WORDS, [NORMAL] * 40))
    assert (match.shared, match.difference) == (40, None)


def test_a_few_tokens_that_differ(model):
    words = [f"word{i}" for i in range(1000)]
    few = [*words[:500], "<tool>", *words[501:]]
    match = match_vocabularies(model(words), model(few))
    assert (match.shared, match.difference) == (1000, None)
    many = [*words[:500], *(f"other{i}" for i in range(6)), *words[506:]]
    assert match_vocabularies(model(words), model(many)).difference.startswith("token 500 is 'word500'")


@pytest.mark.parametrize("swapped", [False, True])
def test_padding_at_the_end_of_one(model, swapped):
    padded = model([*WORDS, "[PAD40]", "[PAD41]"], [*[NORMAL] * 40, UNUSED, UNUSED])
    pair = (padded, model(WORDS)) if swapped else (model(WORDS), padded)
    match = match_vocabularies(*pair)
    assert (match.shared, match.difference) == (40, None)


def test_more_tokens_that_are_in_use(model):
    for types in ([*[NORMAL] * 40, UNUSED, CONTROL], None):
        match = match_vocabularies(model(WORDS), model([*WORDS, "[PAD]", "<tool>"], types))
        assert match.shared == 0 and "40 and 42 tokens" in match.difference


def test_other_tokens_are_named(model):
    match = match_vocabularies(model(WORDS), model([*WORDS[:7], "other", *WORDS[8:]]))
    assert match.shared == 0
    assert match.difference == "token 7 is 'word7' in one and 'other' in the other"
    longer = match_vocabularies(model(WORDS), model([*WORDS[:7], "longer than it", *WORDS[8:], "x"]))
    assert longer.shared == 0 and "token 7" in longer.difference


def test_a_model_without_tokens(model):
    assert match_vocabularies(model(WORDS), model([])).shared == 0


def test_real_models(smollm2, smollm2_q4_0, gemma3):
    small, same, other = map(read_gguf, (smollm2, smollm2_q4_0, gemma3))
    assert match_vocabularies(small, same).shared == small.vocabulary_size == 49152
    assert "token 0" in match_vocabularies(small, other).difference
