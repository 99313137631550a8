"""Headers of draft heads: whatever is wrong with one is said before llama.cpp sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.head_target import (
    HEAD_TARGET,
    HEAD_TRAINED,
    WIDENED_BY,
    WIDENED_FROM,
    head_target,
    widened_by,
)
from specx.backends.gguf.heads import check_head, read_head
from specx.backends.gguf.layer_inputs import given_layers
from specx.engine.setup.finder import Candidate, Unfit, check_candidate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_heads import write_dflash, write_eagle3

WIDTH, VOCAB = 64, 304
KINDS = gguf.GGUFValueType


@pytest.fixture(scope="module")
def target(tmp_path_factory, write_tiny):
    """The header of a tiny llama of 6 layers."""
    return read_gguf(write_tiny(tmp_path_factory.mktemp("target") / "target.gguf", "llama"))


@pytest.fixture
def write(tmp_path, target):
    """Writes a head for it."""

    def write(**options):
        options = {
            "d_target": WIDTH, "n_vocab": VOCAB, "layers": (1, 3, 4), "n_draft": 96, "tokens": target.path,
            **options,
        }  # fmt: skip
        path = tmp_path / "head.gguf"
        write_eagle3(path, **options)
        return path

    return write


def test_what_a_head_says(write, target):
    head = read_head(write())
    assert (head.layers, head.target_width, head.rows, head.trimmed) == ((1, 3, 4), WIDTH, 96, True)
    assert head.own_embedding and head.own_output and head.made_for == ""
    assert len(set(head.ids().tolist())) == 96
    assert check_head(head, target) is None
    found = check_candidate(target, head.info.path)
    assert isinstance(found, Candidate) and found.is_head and not found.translated
    assert 0 < found.step_bytes < head.info.weight_bytes - 4 * VOCAB * WIDTH
    whole = read_head(write(n_draft=None))
    assert whole.rows == VOCAB and whole.ids().tolist() == list(range(VOCAB))


def scalar(key, value, kind=KINDS.UINT32):
    return {"extra": ((f"eagle3.{key}", value, kind),)}


def tensor(name, values):
    return {"replaced": ((name, values),)}


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("told", "trial"),
    [
        ('{"by_step": [0.5, 0.25], "reached": [400, 200]}', ((200, 400), (50, 200))),
        ('{"by_step": [0.5, 0.25]}', ((32, 64), (8, 32))),
        ('{"by_step": [1.5], "reached": [400]}', ()),
        ('{"by_step": [-0.5], "reached": [400]}', ()),
        ('{"by_step": [NaN], "reached": [400]}', ()),
        ('{"by_step": [0.5], "reached": [1e400]}', ()),
        ('{"by_step": [0.5], "reached": [400, 200]}', ()),
        ('{"by_step": [0.5], "reached": 3}', ()),
        ('{"by_step": [0.5], "reached": [null]}', ((32, 64),)),
        ('{"by_step": 3}', ()),
        ('{"by_step": []}', ()),
        ("[" * 100_000, ()),
        ("{", ()),
        ("7", ()),
    ],
)
def test_what_was_tried_when_it_was_trained(write, target, told, trial):
    path = write(extra=((HEAD_TRAINED, told, KINDS.STRING),))
    assert read_head(path).trial == trial
    found = check_candidate(target, path)
    assert isinstance(found, Candidate) and found.trial == trial


DAMAGED = {
    "two layers of its own": (scalar("block_count", 2), "it has 2 layers"),
    "two layers read": ({"layers": (1, 3)}, r"target_layers is \[1, 3\]"),
    "a layer twice": ({"layers": (1, 3, 3)}, r"target_layers is \[1, 3, 3\]"),
    "a layer below": ({"layers": (-1, 3, 4)}, r"target_layers is \[-1, 3, 4\]"),
    "no layers": ({"without": ("eagle3.target_layers",)}, "target_layers is"),
    "layers of another type": (scalar("target_layers", "1,2,3", KINDS.STRING), "target_layers is"),
    "no width of the target": ({"without": ("eagle3.target_hidden_size",)}, "target_hidden_size is 0"),
    "another width of the target": (scalar("target_hidden_size", 32), r"fc.weight is of size \(192, 64\)"),
    "a width of its own": (scalar("embedding_length", 128), r"fc.weight is of size"),
    "no heads": (scalar("attention.head_count", 0), "head_count is 0"),
    "heads that do not go together": (scalar("attention.head_count_kv", 3), "head_count_kv is 3 for 4"),
    "keys and values": (scalar("attention.value_length", 8), "keys have 16 dimensions and its values 8"),
    "an odd rotation": (scalar("rope.dimension_count", 15), "rope.dimension_count is 15"),
    "a rotation too wide": (scalar("rope.dimension_count", 32), "rope.dimension_count is 32"),
    "an epsilon": (
        scalar("attention.layer_norm_rms_epsilon", float("nan"), KINDS.FLOAT32),
        "epsilon is nan",
    ),
    "a feed-forward network": (scalar("feed_forward_length", 90), r"ffn_gate.weight is of size"),
    "no projection": ({"without": ("fc.weight",)}, "fc.weight is missing"),
    "no norm of features": (
        {"norm_before_fc": True, "without": ("enc.output_norm.weight",)},
        "enc.output_norm.weight is missing",
    ),
    "a norm too short": (tensor("output_norm.weight", floats(32)), r"output_norm.weight is of size \(32,\)"),
    "a norm of halves": (tensor("output_norm.weight", floats(64).astype(np.float16)), "is of type F16"),
    "integers for weights": (tensor("fc.weight", np.ones((64, 192), np.int32)), "in which there are no"),
    "an output too short": (tensor("output.weight", floats(90, WIDTH)), r"output.weight is of size"),
    "an embedding too short": (tensor("token_embd.weight", floats(300, WIDTH)), "token_embd.weight is of"),
    "tokens of 32 bits": (tensor("d2t", np.arange(96, dtype=np.int32)), "d2t is of type I32"),
    "tokens in a table": (tensor("d2t", np.arange(96, dtype=np.int64).reshape(2, 48)), "d2t is of type I64"),
    "a token beyond": (tensor("d2t", np.arange(210, 306, dtype=np.int64)), "d2t does not name"),
    "a token below": (tensor("d2t", np.arange(-1, 95, dtype=np.int64)), "d2t does not name"),
    "a token twice": (tensor("d2t", np.array([*range(95), 7], np.int64)), "d2t does not name"),
    "tokens without an output": ({"own_output": False}, "no output.weight for these tokens"),
    "rotary factors": (tensor("blk.0.rope_freqs.weight", floats(5)), "rope_freqs.weight has 5 values"),
    "no tokens": ({"tokens": None}, "no vocabulary"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_wrong_is_said_by_name(what, write, target):
    options, problem = DAMAGED[what]
    path = write(**options)
    with pytest.raises(ModelError, match=problem):
        read_head(path)
    assert isinstance(check_candidate(target, path), Unfit)


@pytest.fixture
def write_block(tmp_path, target):
    """Writes a head for it that drafts a block at once."""

    def write_block(**options):
        path = tmp_path / "block.gguf"
        write_dflash(path, **{"n_vocab": VOCAB, "layers": (1, 3, 4, 2), "tokens": target.path, **options})
        return path

    return write_block


def test_what_a_head_says_that_drafts_a_block(write_block, target):
    head = read_head(write_block(n_draft=96))
    assert (head.layers, head.target_width, head.rows, head.trimmed) == ((1, 3, 4, 2), WIDTH, 96, True)
    assert (head.block.size, head.block.mask, head.block.causal, head.block.most) == (6, 1, False, 5)
    assert "drafts 5 at once" in head.told() and check_head(head, target) is None
    found = check_candidate(target, head.info.path)
    assert isinstance(found, Candidate) and found.is_head
    assert 0 < found.step_bytes < head.info.weight_bytes / 5
    biased = read_head(write_block(markov=8))
    assert (biased.block.most, biased.block.rank) == (6, 8)
    assert read_head(write_block(markov=8, from_anchor=False)).block.most == 5
    shared = read_head(write_block(own_output=False))  # its embedding is its output
    assert shared.own_output and check_head(shared, target) is None
    usual = read_head(write_block(without=("dflash.block_size",)))
    assert usual.block.size == 16  # as llama.cpp takes it


def key(name, value, kind=KINDS.UINT32):
    return {"extra": ((name, value, kind),)}


DAMAGED_BLOCKS = {
    "no block": (key("dflash.block_size", 1), "block_size is 1, not 2 to 32"),
    "a block too large": (key("dflash.block_size", 33), "block_size is 33, not 2 to 32"),
    "a block of text": (key("dflash.block_size", "6", KINDS.STRING), "block_size is 0"),
    "no mask": ({"mask": None}, "mask_token_id is -1, which is no token"),
    "a mask beyond": ({"mask": VOCAB}, f"mask_token_id is {VOCAB}, which is no token"),
    "a bias and no size": (
        {"markov": 8, "without": ("dflash.block_size",)},
        "dflash.block_size is missing",
    ),
    "half a bias": ({"markov": 8, "without": ("markov_w2.weight",)}, "markov_w2.weight is missing"),
    "a bias of others": (
        {"markov": 8, **tensor("markov_w1.weight", floats(300, 8))},
        r"markov_w1.weight is of size \(8, 300\)",
    ),
    "a later form": (tensor("selector_hidden.weight", floats(8, 64)), "a later form of DFlash"),
    "experts": (key("dflash.hyper_connection.count", 2), "a later form of DFlash"),
    "scales": (tensor("fc.scale", floats(1)), "scales of their own"),
    "no layers read": ({"without": ("dflash.target_layers",)}, "target_layers is"),
    "a layer twice": ({"layers": (1, 1)}, r"target_layers is \[1, 1\]"),
    "more layers than there are": (key("dflash.block_count", 3), "blk.2.attn_norm.weight is missing"),
    "no layers": (key("dflash.block_count", 0), "has no layer count"),
    "no norm of keys": ({"without": ("blk.1.attn_k_norm.weight",)}, "attn_k_norm.weight is missing"),
    "a norm of another size": (
        tensor("blk.0.post_ffw_norm.weight", floats(32)),
        r"post_ffw_norm.weight is of size \(32,\)",
    ),
    "no projection": ({"without": ("fc.weight",)}, "fc.weight is missing"),
    "one layer less read": ({"layers": (1, 3, 4), **tensor("fc.weight", floats(64, 256))}, "fc.weight is of"),
    "keys and values": (key("dflash.attention.value_length", 8), "keys have 16 dimensions and its values 8"),
    "tokens without an output": ({"own_output": False, "n_draft": 96}, "no output.weight for these tokens"),
    "a token twice": (
        {"n_draft": 96, **tensor("d2t", np.array([*range(95), 7], np.int64))},
        "d2t does not name",
    ),
}


@pytest.mark.parametrize("what", DAMAGED_BLOCKS)
def test_what_is_wrong_with_a_block_is_said_by_name(what, write_block, target):
    options, problem = DAMAGED_BLOCKS[what]
    path = write_block(**options)
    with pytest.raises(ModelError, match=problem):
        read_head(path)
    assert isinstance(check_candidate(target, path), Unfit)


UNFIT = {
    "another width": ({"d_target": 32}, "it reads hidden states of 32 values, and the target's have 64"),
    "layers beyond": ({"layers": (1, 3, 6)}, "and the target gives 0 to 5"),
    "made for another": ({"extra": ((HEAD_TARGET, "ab", KINDS.STRING),)}, "trained for another model"),
    "no embedding": ({"own_embeddings": False, "width": 32}, "the target's have another width"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_go_with_the_target_is_said(what, write, target):
    options, reason = UNFIT[what]
    found = check_candidate(target, write(**options))
    assert isinstance(found, Unfit) and reason in found.reason


def test_a_head_goes_with_its_own_target_in_any_quantization(write, target):
    made_for = {"extra": ((HEAD_TARGET, head_target(target), KINDS.STRING),)}
    assert check_head(read_head(write(**made_for)), target) is None


def test_architectures_give_what_they_give(write, write_tiny, tmp_path):
    for architecture, first in (("llama", 0), ("qwen2", 1), ("gemma3", 1), ("granite", 1)):
        info = read_gguf(write_tiny(tmp_path / f"{architecture}.gguf", architecture))
        assert given_layers(info) == range(first, info.blocks)
        reason = check_head(read_head(write(layers=(0, 2, 3))), info)
        assert (reason is None) == (first == 0)
    pictures = [("granite.deepstack_mapping", [0] * 6, KINDS.INT32)]

    def deepstack(writer):
        for key, value, kind in pictures:
            writer.add_key_value(key, value, KINDS.ARRAY, kind)

    info = read_gguf(write_tiny(tmp_path / "vision.gguf", "granite", extra=deepstack))
    assert not given_layers(info)
    assert "gives no hidden states" in check_head(read_head(write()), info)


def test_another_vocabulary(write, target, tiny_models):
    other = read_gguf(tiny_models["full"])  # of 320 tokens
    reason = check_candidate(target, write(tokens=other.path, n_vocab=320)).reason
    assert "its vocabulary is not the target's" in reason and "in the other" in reason
    assert "its vocabulary is not the target's" in check_head(read_head(write(layers=(0, 1, 2))), other)


def test_a_widened_target_is_read_as_far_as_it_was(write, write_tiny, tmp_path):
    def widened(writer):
        writer.add_uint32(WIDENED_FROM, 32)
        writer.add_float32(WIDENED_BY, 1.5)

    narrow, wide = (
        read_gguf(write_tiny(tmp_path / f"{name}.gguf", "llama", extra=extra))
        for name, extra in (("narrow", lambda _: None), ("wide", widened))
    )
    assert head_target(narrow) != head_target(wide)  # of 64 and of 32 values
    assert widened_by(narrow) == 1.0 and widened_by(wide) == 1.5
    own = {"d_target": 32, "extra": ((HEAD_TARGET, head_target(wide), KINDS.STRING),)}
    assert check_head(read_head(write(**own)), wide) is None
    assert "32 values" in check_head(read_head(write(**own)), narrow)


def test_models_and_other_heads_are_none(target, write, tmp_path):
    with pytest.raises(ModelError, match="is no draft head"):
        read_head(target.path)
