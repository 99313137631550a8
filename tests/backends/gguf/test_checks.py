"""What a header says about a model that llama.cpp would end the process for, or that writes no text."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.errors import ModelError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.backends.llama.cache_types import check_cache_of_model, check_flash_attention
from specx.backends.settings import Load


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


damage = _load("damage")
NAN = float("nan")


def u32(value):
    return damage.scalar(damage.UINT32, value)


def f32(value):
    return damage.scalar(damage.FLOAT32, value)


@pytest.fixture
def changed(tiny_models, tmp_path):
    """The small model with some values replaced, or left out where they are None."""

    def write(**values):
        header = damage.parsed(tiny_models["full"].read_bytes())
        new = {name.replace("__", ".").encode(): value for name, value in values.items()}
        merged = {**header.values, **new}
        path = tmp_path / "changed.gguf"
        kept = {key: value for key, value in merged.items() if value is not None}
        path.write_bytes(replace(header, values=kept).written())
        return path

    return write


def test_an_undamaged_file_is_read(changed):
    path = changed(llama__expert_count=u32(0), llama__rope__scaling__type=damage.string(b"yarn"))
    assert read_runnable(path) == read_gguf(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"llama__attention__causal": damage.scalar(damage.BOOL, False)}, "an encoder"),
        ({"tokenizer__ggml__tokens": None}, "no vocabulary"),
    ],
)
def test_an_obstacle_is_one(changed, values, reason):
    path = changed(**values)
    assert reason in read_gguf(path).plain_reason
    with pytest.raises(ModelError, match=reason) as caught:
        read_runnable(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"llama__block_count": u32(600)}, "block_count is 600"),
        ({"llama__nextn_predict_layers": u32(3)}, "nextn_predict_layers is 3 of 3 layers"),
        ({"llama__expert_count": u32(4)}, "expert_used_count is 0 of 4 experts"),
        ({"llama__expert_used_count": u32(2)}, "expert_used_count is 2 of 0 experts"),
        ({"llama__expert_count": u32(2000), "llama__expert_used_count": u32(2)}, "expert_count is 2000"),
        ({"llama__expert_group_count": u32(2)}, "expert_group_count is 2 for 0 experts"),
        ({"llama__attention__head_count_kv": u32(3)}, "attention.head_count_kv is 3 for 4 heads"),
        (
            {"llama__attention__head_count_kv": damage.array(damage.UINT32, [2, 2])},
            "attention.head_count_kv has 2 values for 3 layers",
        ),
        ({"llama__attention__key_length": u32(0), "llama__embedding_length": u32(0)}, "key_length is 0"),
        ({"llama__rope__dimension_count": u32(15)}, "rope.dimension_count is 15"),
        ({"llama__rope__dimension_count": u32(0)}, "rope.dimension_count is 0"),
        ({"llama__rope__dimension_count": u32(18)}, "rope.dimension_count is 18"),
        ({"llama__attention__layer_norm_rms_epsilon": f32(NAN)}, "layer_norm_rms_epsilon is nan"),
        ({"llama__attention__layer_norm_rms_epsilon": f32(-1)}, "layer_norm_rms_epsilon is -1.0"),
        ({"llama__rope__scaling__type": damage.string(b"cubic")}, "rope.scaling.type is 'cubic'"),
        ({"general__alignment": u32(8)}, "general.alignment is 8"),
        (
            {"tokenizer__ggml__tokens": damage.array(damage.STRING, [b"a", b"b", b"a"])},
            "tokenizer.ggml.tokens has 1 of 3 tokens twice",
        ),
        ({"tokenizer__ggml__tokens": damage.array(damage.UINT32, [1] * 2000)}, "tokens is no list of texts"),
        *(
            (
                {
                    "tokenizer__ggml__model": damage.string(b"gpt2"),
                    "tokenizer__ggml__tokens": damage.array(damage.STRING, [b"a", b"b", b"c"]),
                    "tokenizer__ggml__token_type": damage.array(damage.INT32, types),
                },
                "token_type says of no token that it is text",
            )
            for types in ([3, 3, 3], [2, 3, 5], [0, 0, 0])
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named(changed, values, sentence):
    path = changed(**values)
    with pytest.raises(ModelError, match="damaged") as caught:
        read_runnable(path)
    assert sentence in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kind", [24, 26])
def test_weights_that_are_integers(tiny_models, tmp_path, kind):
    header = damage.parsed(tiny_models["full"].read_bytes())
    *others, last = header.tensors
    path = tmp_path / "integers.gguf"
    path.write_bytes(replace(header, tensors=(*others, replace(last, kind=kind))).written())
    with pytest.raises(ModelError, match="no weights") as caught:
        read_runnable(path)
    assert last.name.decode() in caught.value.message


def test_a_quantized_v_cache_needs_flash_attention():
    for flash_attn, type_v, draft_type_v in (
        ("off", None, None),
        ("off", "f16", "bf16"),
        ("auto", "q4_0", "q8_0"),
        ("on", "q4_0", "q8_0"),
        (None, "q4_0", "q8_0"),
    ):
        check_flash_attention(flash_attn, type_v, draft_type_v)
    with pytest.raises(UsageError, match=r"-ctv/.*needs flash attention") as caught:
        check_flash_attention("off", "q4_0", None)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="-ctvd"):
        check_flash_attention("off", None, "q8_0")


def test_a_head_is_made_of_whole_blocks(tiny_models):
    info, load = read_gguf(tiny_models["full"]), Load(tiny_models["full"], 1, 1)
    assert info.key_length == info.value_length == 16
    check_cache_of_model(info, load)
    check_cache_of_model(info, replace(load, type_k="q8_0", flash_attn="off"))
    for flag, field in (("-ctk", "type_k"), ("-ctv", "type_v")):
        with pytest.raises(UsageError, match=f"{flag} is q8_0, in blocks of 32") as caught:
            check_cache_of_model(info, replace(load, **{field: "q8_0"}))
        assert caught.value.hint == f"take a type without blocks: {flag} f16"
    check_cache_of_model(replace(info, key_length=64), replace(load, type_k="q8_0"))


def test_keys_and_values_that_are_kept_in_one_have_one_type(tiny_models):
    info, load = read_gguf(tiny_models["full"]), Load(tiny_models["full"], 1, 1)
    latent = replace(info, metadata={**info.metadata, "llama.attention.key_length_mla": 16})
    check_cache_of_model(latent, load)
    with pytest.raises(UsageError, match="keeps both in one"):
        check_cache_of_model(latent, replace(load, type_k="f32"))


def test_a_byte_without_a_token_is_named(tmp_path, write_tiny):
    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"<0x6D>", b"<0x6d>", 1))
    with pytest.raises(ModelError, match="no token for the byte 0x6D"):
        read_runnable(path)
    path.write_bytes(path.read_bytes().replace(b"<0x", b"<1x"))
    with pytest.raises(ModelError, match="no token for the byte 0x00"):
        read_runnable(path)
