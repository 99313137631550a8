"""Cache sizes from headers, against what llama.cpp says it sets aside."""

import re
from dataclasses import replace

import pytest

from specx.backends.gguf.cache_size import CELLS, cells, layer_cache_bytes, window_cells, windowed_layers
from specx.backends.gguf.file import read_gguf
from specx.backends.llama.libllama import set_log
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

MIB = 1 << 20


def with_metadata(info, **values):
    """`info` as of a file that says so; double underscores stand for dots."""
    added = {f"{info.architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return replace(info, metadata={**info.metadata, **added})


@pytest.fixture
def full(tiny_models):
    return read_gguf(tiny_models["full"])


def llamas_own_figures(load: Load, capsys: pytest.CaptureFixture[str]) -> float:
    """MiB of all caches and states that llama.cpp reports."""
    capsys.readouterr()
    LlamaModel(replace(load, log="-")).close()
    set_log("")
    lines = [line for line in capsys.readouterr().err.splitlines() if re.search(r"(KV|RS) buffer size", line)]
    assert lines
    return sum(float(re.search(r"([\d.]+) MiB", line)[1]) for line in lines)


def predicted(load: Load) -> float:
    """MiB."""
    layers = layer_cache_bytes(
        read_gguf(load.path),
        load.n_ctx,
        type_k=load.type_k,
        type_v=load.type_v,
        n_ubatch=load.n_ubatch,
        swa_full=load.swa_full,
        flash_attn=load.flash_attn != "off",
        states=1 + load.kept_states,
    )
    return load.texts * sum(layers) / MIB


@pytest.mark.parametrize("name", ["full", "sliding", "recurrent"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_ctx": 300},
        {"n_ctx": 2048, "n_ubatch": 1024},
        {"n_ctx": 2048, "type_k": "f32", "type_v": "f32"},
        {"n_ctx": 2048, "swa_full": True},
        {"n_ctx": 1024, "flash_attn": "off"},
    ],
)
def test_it_is_what_llama_cpp_sets_aside(tiny_models, capsys, name, options):
    load = Load(tiny_models[name], 1, 1, **({"n_ctx": 4096} | options))
    assert predicted(load) == pytest.approx(llamas_own_figures(load, capsys), abs=0.011)


@pytest.mark.parametrize("name", ["qwen35", "lfm2moe", "nemotron_h"])
def test_so_are_the_states_that_are_kept(tiny_hybrids, capsys, name):
    for options in ({}, {"snapshots": 7}, {"snapshots": 7, "texts": 8}):
        load = Load(tiny_hybrids[name], 1, 1, n_ctx=512, **options)
        assert predicted(load) == pytest.approx(llamas_own_figures(load, capsys), abs=0.011)


def test_quantized_caches_are_what_llama_cpp_sets_aside(smollm2, capsys):
    load = Load(smollm2, 1, 1, n_ctx=1000, type_k="q8_0", type_v="q4_0")
    assert predicted(load) == pytest.approx(llamas_own_figures(load, capsys), abs=0.011)


def test_cells_are_rounded_up_and_windows_hold_a_batch_besides(tiny_models):
    info = read_gguf(tiny_models["sliding"])
    assert (cells(1), cells(256), cells(257)) == (CELLS, CELLS, 2 * CELLS)
    assert window_cells(info, 4096, 512) == 768  # 24 and 512, rounded up
    assert window_cells(info, 300, 512) == 512  # not more than everything
    assert windowed_layers(info) == {0, 1, 2, 3, 4}


def test_a_type_that_does_not_exist_is_named(full):
    with pytest.raises(ValueError, match="q9"):
        layer_cache_bytes(full, 512, type_k="q9")


def test_head_counts_of_each_layer_and_layers_without_a_cache(full):
    (layer, *_) = layer_cache_bytes(full, 256)
    info = replace(full, kv_heads=(2, 0, 4))
    assert layer_cache_bytes(info, 256) == (layer, 0, 2 * layer)
    # llama.cpp keeps values transposed without flash attention, all layers as wide as the widest.
    assert layer_cache_bytes(info, 256, flash_attn=False) == (layer * 3 // 2, 0, 2 * layer)
    assert layer_cache_bytes(replace(full, nextn_layers=1), 256) == (layer, layer, 0)


def test_latent_attention_keeps_keys_only(full):
    info = with_metadata(
        replace(full, kv_heads=(1, 1, 1), key_length=576, value_length=512),
        attention__key_length_mla=192,
        attention__value_length_mla=128,
    )
    assert layer_cache_bytes(info, 1024) == (1024 * 576 * 2,) * 3


@pytest.mark.parametrize(
    ("architecture", "layers", "pattern", "windowed"),
    [
        ("gemma2", 4, None, {0, 2}),
        ("gpt-oss", 4, None, {0, 2}),
        ("cohere2moe", 5, None, {1, 2, 3}),
        ("gemma3", 7, 3, {0, 1, 3, 4, 6}),
        ("gemma4", 4, (True, False, True, True), {0, 2, 3}),
        ("step35", 3, (1, 0, 1), {0, 2}),
        ("phi3", 4, None, set()),  # llama.cpp turns it off
        ("exaone4", 30, None, set()),
        ("mistral-of-tomorrow", 4, None, set()),  # an upper bound where nothing is known
    ],
)
def test_which_layers_have_a_window(full, architecture, layers, pattern, windowed):
    info = replace(full, architecture=architecture, blocks=layers, kv_heads=(1,) * layers, sliding_window=128)
    if pattern is not None:
        info = with_metadata(info, attention__sliding_window_pattern=pattern)
    assert windowed_layers(info) == windowed
    assert windowed_layers(replace(info, sliding_window=0)) == (
        windowed if architecture == "gemma2" else set()
    )


def test_windowed_layers_may_have_heads_of_another_size(full):
    info = with_metadata(
        replace(full, architecture="gemma4", sliding_window=128, key_length=32, value_length=32),
        attention__sliding_window_pattern=(True, False, True),
        attention__key_length_swa=16,
        attention__value_length_swa=16,
    )
    windowed, everything, _ = layer_cache_bytes(info, 4096, n_ubatch=128)
    assert everything == 4096 * 2 * (32 + 32) * 2
    assert windowed == 256 * 2 * (16 + 16) * 2


@pytest.mark.parametrize(
    ("values", "floats"),
    [
        ({"wkv__head_size": 64}, (2 + 64) * 64),
        ({"wkv__head_size": 64, "token_shift_count": 1}, (1 + 64) * 64),
        ({"shortconv__l_cache": 3}, 2 * 64),
        ({"kda__head_dim": 16, "ssm__conv_kernel": 4}, 3 * 3 * 4 * 16 + 16 * 16 * 4),
        (
            {
                "ssm__inner_size": 128,
                "ssm__state_size": 16,
                "ssm__conv_kernel": 4,
                "ssm__group_count": 2,
            },
            3 * (128 + 2 * 2 * 16) + 16 * 128,
        ),
    ],
)
def test_recurrent_states(full, values, floats):
    tensors = tuple(replace(t, name=t.name.replace("attn_q", "ssm_in")) for t in full.tensors)
    info = with_metadata(replace(full, state="hybrid", kv_heads=(0, 0, 2), tensors=tensors), **values)
    state, _, both = layer_cache_bytes(info, 256)
    assert state == 4 * floats
    assert both - state == layer_cache_bytes(full, 256)[0]
