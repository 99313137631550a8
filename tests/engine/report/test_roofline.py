"""What a step takes at least: its bytes at the measured bandwidth, its products at the measured peak."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from specx.backends.gguf.file import Tensor, read_gguf
from specx.backends.llama import kernels
from specx.backends.llama.memory import cache_bytes
from specx.backends.settings import Load
from specx.engine.report.roofline import roofline_of
from specx.engine.setup.layers import step_bytes, step_products
from specx.kernels._native import integer_peak

BANDWIDTH, PEAK = 50e9, 1e12


@pytest.fixture
def info(tmp_path, write_model):
    return read_gguf(write_model(tmp_path / "model.gguf", 64, layers=4))


def roofline(info, peak=PEAK):
    load = Load(info.path, threads=1, threads_batch=1, n_ctx=512)
    options = {"bandwidth": BANDWIDTH, "peak": peak, "instructions": "avx2"}
    return load, roofline_of(info, load, depths=(0, 256), widths=(1, 8, 32), **options)


def test_the_bounds_are_bytes_and_products_by_what_the_machine_does(info):
    load, found = roofline(info)
    for n in (1, 8, 32):
        assert found.bounds[0][n].reading == pytest.approx(step_bytes(info) / BANDWIDTH * 1e3)
        assert found.bounds[0][n].computing == pytest.approx(2 * n * step_products(info) / PEAK * 1e3)
    cached = sum(cache_bytes(info, load)) / 2
    deeper = (step_bytes(info) + cached) / BANDWIDTH * 1e3
    assert found.bounds[256][8].reading == pytest.approx(deeper)
    narrow, wide = found.bounds[0][1], replace(found.bounds[0][32], computing=1e9)
    assert (narrow.ms, wide.ms) == (max(narrow.reading, narrow.computing), 1e9)


def test_a_peak_that_nobody_knows_bounds_nothing(info):
    bound = roofline(info, peak=0)[1].bounds[0][32]
    assert bound.computing is None and bound.ms == bound.reading


def test_every_weight_that_a_token_is_multiplied_with_counts_once(info):
    matrices = [t for t in info.tensors if len(t.shape) > 1 and t.name != "token_embd.weight"]
    head = not any(t.name == "output.weight" for t in info.tensors)
    embedding = next(t for t in info.tensors if t.name == "token_embd.weight")
    assert step_products(info) == sum(t.elements for t in matrices) + head * embedding.elements


def test_more_tokens_use_more_experts(info):
    experts = Tensor("blk.0.ffn_up_exps.weight", (8, 8, 8), "F32", 8 * 8 * 8 * 4)
    mixed = replace(info, experts=8, experts_used=2, tensors=(*info.tensors, experts))
    assert step_products(mixed) == step_products(info) + experts.elements // 4
    read = [step_bytes(mixed, n) - step_bytes(info) for n in (1, 2, 4, 64)]
    expected = [experts.nbytes * (1 - 0.75**n) for n in (1, 2, 4, 64)]
    assert read == pytest.approx(expected, abs=1)
    assert step_bytes(info, 64) == step_bytes(info)


def test_the_peak_is_measured_with_what_the_processor_has():
    assert integer_peak("generic", 1, 1) > 0
    assert integer_peak("no such instructions", 1, 1) == 0
    library = kernels.library()
    if library is not None:
        describe = ctypes.CDLL(str(library)).specx_ggml_describe
        describe.restype = ctypes.c_char_p
        instructions = describe().decode().rpartition(", ")[2]
        assert instructions == "amx_int8" or integer_peak(instructions, 1, 1) > 0
    for threads, repeats in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one"):
            integer_peak("generic", threads, repeats)
