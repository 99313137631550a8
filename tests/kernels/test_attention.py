"""The attention kernel against its NumPy reference, on every instruction set of this machine."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from specx.kernels import _native
from specx.kernels.reference import attention as reference

LIBRARY = Path(_native.__file__).with_name("libspecx-ggml.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the ggml device was not built")

F16, Q8_0 = 1, 8  # ggml's numbers
ISAS = {"generic": 0, "avx2": 1, "avx512_vnni": 3, "neon_dotprod": 4}
INF = float("inf")


class Operation(ctypes.Structure):
    """`specx::Attention` of kernels/ggml/attention/attention.hpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("q", "k", "v", "mask", "sinks", "dst")],
        *[(name, ctypes.c_int64) for name in ("type_k", "type_v", "k_size", "v_size")],
        *[(name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "cells", "streams")],
        *[(name, ctypes.c_int64) for name in ("mask_heads", "mask_streams")],
        *[
            (f"{tensor}_{axis}", ctypes.c_int64)
            for tensor, axes in (
                ("q", ("row", "head", "stream")),
                ("k", ("cell", "head", "stream")),
                ("v", ("cell", "head", "stream")),
                ("mask", ("row", "head", "stream")),
                ("dst", ("head", "row", "stream")),
            )
            for axis in axes
        ],
        *[(name, ctypes.c_float) for name in ("scale", "max_bias", "softcap")],
    ]


def isas():
    if not LIBRARY.exists():
        return []
    library = ctypes.CDLL(str(LIBRARY))
    return [name for name, number in ISAS.items() if library.specx_isa_available(number)]


def cache_of(x, kind):
    """The cache as llama.cpp lays it out, (streams, cells, heads * size), and what it says in floats."""
    rows = np.ascontiguousarray(x.transpose(0, 2, 1, 3))
    if kind == Q8_0:
        packed = reference.quantize_q8_0(rows)
        return packed, reference.dequantize_q8_0(packed).transpose(0, 2, 1, 3)
    halves = rows.astype(np.float16)
    return halves, halves.astype(np.float32).transpose(0, 2, 1, 3)


def compute(isa, q, k, v, mask, *, scale, max_bias=0.0, softcap=0.0, sinks=None, kinds=(F16, F16), threads=2):
    """Run the kernel on q (streams, heads, rows, size) and caches from `cache_of`.

    Returns (streams, rows, heads, v_size). The queries are strided, as after ggml's permutation.
    """
    library = ctypes.CDLL(str(LIBRARY))
    streams, heads, rows, k_size = q.shape
    queries = np.ascontiguousarray(
        q.transpose(0, 2, 1, 3), dtype=np.float32
    )  # strided, as after a permutation
    v_size = v.shape[-1] if kinds[1] == F16 else v.shape[-1] // 34 * 32
    op = Operation(
        q=queries.ctypes.data, k=k.ctypes.data, v=v.ctypes.data, type_k=kinds[0], type_v=kinds[1],
        k_size=k_size, v_size=v_size, rows=rows, heads=heads, kv_heads=k.shape[2], cells=k.shape[1],
        streams=streams, scale=scale, max_bias=max_bias, softcap=softcap,
    )  # fmt: skip
    op.q_stream, op.q_row, op.q_head = queries.strides[:3]
    op.k_stream, op.k_cell, op.k_head = k.strides[:3]
    op.v_stream, op.v_cell, op.v_head = v.strides[:3]
    if mask is not None:
        mask = np.ascontiguousarray(mask, dtype=np.float16)
        op.mask, op.mask_streams, op.mask_heads = mask.ctypes.data, mask.shape[0], mask.shape[1]
        op.mask_stream, op.mask_head, op.mask_row = mask.strides[:3]
    if sinks is not None:
        sinks = np.ascontiguousarray(sinks, dtype=np.float32)
        op.sinks = sinks.ctypes.data
    out = np.full((streams, rows, heads, v_size), np.nan, dtype=np.float32)
    op.dst = out.ctypes.data
    op.dst_stream, op.dst_row, op.dst_head = out.strides[:3]
    assert library.specx_attention(ISAS[isa], ctypes.byref(op), threads) == 0
    return out


def random_case(seed, *, rows, cells, heads=6, kv_heads=2, size=64, v_size=None, streams=1):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((streams, heads, rows, size)).astype(np.float32)
    k = rng.standard_normal((streams, kv_heads, cells, size)).astype(np.float32)
    v = rng.standard_normal((streams, kv_heads, cells, v_size or size)).astype(np.float32)
    return rng, q, k, v


def random_mask(rng, rows, cells, share=0.3):
    """Holes anywhere, some rows blind to whole stretches, finite biases elsewhere."""
    mask = np.where(rng.random((1, 1, rows, cells)) < share, -INF, rng.standard_normal((1, 1, rows, cells)))
    for row in range(rows):
        start = rng.integers(0, cells)
        mask[0, 0, row, start : start + rng.integers(0, cells)] = -INF
    return mask.astype(np.float16)


def check(isa, case, mask, *, kinds=(F16, F16), threads=2, tolerance=2e-5, **settings):
    q, k, v = case
    settings.setdefault("scale", q.shape[-1] ** -0.5)
    (k_cache, k_seen), (v_cache, v_seen) = cache_of(k, kinds[0]), cache_of(v, kinds[1])
    expected = reference.attention(q, k_seen, v_seen, mask, **settings)
    actual = compute(isa, q, k_cache, v_cache, mask, kinds=kinds, threads=threads, **settings)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    return actual


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("size", [16, 64, 80, 96, 112, 128, 256])
@pytest.mark.parametrize("cells", [1, 63, 64, 65, 300])
def test_agrees_with_the_reference(isa, size, cells):
    for rows in (1, 5):
        rng, *case = random_case(size + cells, rows=rows, cells=cells, size=size)
        check(isa, case, random_mask(rng, rows, cells))


@pytest.mark.parametrize("isa", isas())
def test_grouping_streams_and_values_of_another_size(isa):
    for heads, kv_heads in ((8, 8), (8, 1), (9, 3), (7, 7)):
        rng, *case = random_case(
            heads, rows=3, cells=130, heads=heads, kv_heads=kv_heads, size=96, v_size=48, streams=2
        )
        mask = np.concatenate([random_mask(rng, 3, 130), random_mask(rng, 3, 130)])
        check(isa, case, mask)
        check(isa, case, None)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kinds", [(Q8_0, Q8_0), (Q8_0, F16), (F16, Q8_0)])
def test_quantized_cache(isa, kinds):
    rng, *case = random_case(1, rows=4, cells=200, size=64)
    check(isa, case, random_mask(rng, 4, 200), kinds=kinds)


@pytest.mark.parametrize("isa", isas())
def test_softcap_alibi_and_sinks(isa):
    rng, *case = random_case(2, rows=4, cells=150, heads=12, kv_heads=4)
    mask = random_mask(rng, 4, 150)
    check(isa, case, mask, softcap=20.0)
    check(isa, case, mask, max_bias=8.0)
    check(isa, case, mask, sinks=rng.standard_normal(12) * 4)
    heads_differ = np.concatenate([random_mask(rng, 4, 150) for _ in range(12)], axis=1)
    check(isa, case, heads_differ)


@pytest.mark.parametrize("isa", isas())
def test_a_row_is_the_same_at_every_width_and_number_of_threads(isa):
    rows, cells = 40, 333
    rng, q, k, v = random_case(3, rows=rows, cells=cells, heads=6, kv_heads=2)
    mask = random_mask(rng, rows, cells)
    (k_cache, _), (v_cache, _) = cache_of(k, F16), cache_of(v, F16)
    alone = [
        compute(isa, q[:, :, [row]], k_cache, v_cache, mask[:, :, [row]], scale=0.125, threads=1)[0, 0]
        for row in range(rows)
    ]
    for width in range(1, rows + 1):
        threads = width % 3 + 1
        start = (width * 7) % (rows - width + 1)
        chosen = slice(start, start + width)
        out = compute(
            isa, q[:, :, chosen], k_cache, v_cache, mask[:, :, chosen], scale=0.125, threads=threads
        )
        for row in range(width):
            np.testing.assert_array_equal(out[0, row], alone[start + row])


@pytest.mark.parametrize("kinds", [(F16, F16), (Q8_0, Q8_0), (F16, Q8_0)])
@pytest.mark.parametrize("size", [32, 64, 96, 256])
def test_every_instruction_set_gives_the_same_bits(size, kinds):
    for rows, cells, streams in ((1, 430, 3), (5, 130, 1), (70, 190, 1)):
        rng, q, k, v = random_case(size + rows, rows=rows, cells=cells, size=size, streams=streams)
        mask = np.concatenate([random_mask(rng, rows, cells) for _ in range(streams)])
        (k_cache, _), (v_cache, _) = cache_of(k, kinds[0]), cache_of(v, kinds[1])
        sinks = rng.standard_normal(6)
        for settings in ({}, {"softcap": 20.0}, {"sinks": sinks, "max_bias": 8.0}):
            bits = {
                compute(isa, q, k_cache, v_cache, mask, scale=0.1, kinds=kinds, **settings).tobytes()
                for isa in isas()
            }
            assert len(bits) == 1


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize("rows", [1, 3, 12])
def test_a_text_is_the_same_alone_and_beside_longer_and_shorter_ones(isa, kind, rows):
    depths = [1, 64, 65, 300, 17, 0, 200]  # of 320 cells; what lies beyond is another text's rubbish
    _, q, k, v = random_case(9, rows=rows, cells=320, heads=9, kv_heads=3, streams=len(depths))
    mask = np.full((len(depths), 1, rows, 320), -INF, dtype=np.float16)
    for stream, depth in enumerate(depths):
        for row in range(rows):
            mask[stream, 0, row, : min(depth + row, 320)] = 0
    (k_cache, _), (v_cache, _) = cache_of(k, kind), cache_of(v, kind)
    settings = {"scale": 0.125, "kinds": (kind, kind)}
    together = {
        threads: compute(isa, q, k_cache, v_cache, mask, threads=threads, **settings) for threads in (1, 2, 5)
    }
    for stream, depth in enumerate(depths):
        own = slice(stream, stream + 1)
        cells = max(1, min(depth + rows, 320))  # no more than the text has
        alone = compute(
            isa, q[own], k_cache[own, :cells].copy(), v_cache[own, :cells].copy(), mask[own, ..., :cells],
            threads=1, **settings,
        )  # fmt: skip
        for out in together.values():
            np.testing.assert_array_equal(out[own], alone)


@pytest.mark.parametrize("isa", isas())
def test_sharing_out_rows_gives_the_same_bits_as_sharing_out_tiles(isa):
    rows, cells = 150, 200  # too wide to share out tiles
    _, q, k, v = random_case(4, rows=rows, cells=cells, heads=4, kv_heads=2, size=32)
    causal = np.where(np.arange(cells) <= np.arange(rows)[:, None] + 50, 0, -INF).astype(np.float16)[
        None, None
    ]
    wide = check(isa, (q, k, v), causal, threads=3)
    (k_cache, _), (v_cache, _) = cache_of(k, F16), cache_of(v, F16)
    for start in range(0, rows, 50):
        part = slice(start, start + 50)
        narrow = compute(isa, q[:, :, part], k_cache, v_cache, causal[:, :, part], scale=32**-0.5)
        np.testing.assert_array_equal(narrow, wide[:, part])


@pytest.mark.parametrize("isa", isas())
def test_cells_no_row_sees_do_not_matter(isa):
    """Freed cells, the padding at the end, and what lies before a sliding window."""
    rng, q, k, v = random_case(5, rows=4, cells=320)
    mask = np.zeros((1, 1, 4, 320), dtype=np.float16)
    for row in range(4):  # a window of 70 cells; only row 3 looks at the two draft cells of its branch
        mask[0, 0, row, : 180 + row] = -INF
        mask[0, 0, row, 250 + row :] = -INF
    mask[0, 0, 3, [300, 302]] = 0
    before = check(isa, (q, k, v), mask)
    unseen = np.isinf(mask).all(axis=(0, 1, 2))
    k[:, :, unseen], v[:, :, unseen] = rng.standard_normal((2, 1, 2, unseen.sum(), 64)) * 100
    after = check(isa, (q, k, v), mask)
    np.testing.assert_array_equal(before, after)
    more = np.concatenate([mask, np.full((1, 1, 4, 77), -INF, dtype=np.float16)], axis=-1)
    longer = [
        np.concatenate([x, rng.standard_normal((1, 2, 77, 64)).astype(np.float32)], axis=2) for x in (k, v)
    ]
    np.testing.assert_array_equal(check(isa, (q, *longer), more), after)


def random_tree(rng, rows, branching):
    """The way from the root to each of its rows."""
    parents = [-1]
    for row in range(1, rows):
        parents.append(row - 1 if rng.random() > branching else int(rng.integers(0, row)))
    ways = []
    for row, parent in enumerate(parents):
        ways.append([*(ways[parent] if parent >= 0 else []), row])
    return ways


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kinds", [(F16, F16), (Q8_0, F16), (Q8_0, Q8_0)])
@pytest.mark.parametrize(
    ("prefix", "rows", "padding", "group"),
    [
        (0, 5, 3, 3), (1, 2, 200, 1), (50, 16, 30, 3), (63, 8, 0, 8), (64, 8, 7, 2), (200, 64, 56, 3),
        (300, 24, 188, 3), (120, 70, 66, 3),  # the last one's rows are shared out, not its tiles
    ],
)  # fmt: skip
def test_a_row_of_a_tree_is_as_if_the_other_branches_were_not_there(isa, kinds, prefix, rows, padding, group):
    cells = prefix + rows + padding
    rng, q, k, v = random_case(prefix + rows, rows=rows, cells=cells, heads=2 * group, streams=2)
    k_cache, v_cache = (cache_of(x, kind)[0] for x, kind in ((k, kinds[0]), (v, kinds[1])))
    mask = np.full((2, 1, rows, cells), -INF, np.float16)
    mask[..., :prefix] = 0
    trees = [random_tree(rng, rows, branching) for branching in (0.3, 0.7)]
    for stream, ways in enumerate(trees):
        for row, way in enumerate(ways):
            mask[stream, 0, row, [prefix + at for at in way]] = 0
    results = [
        compute(isa, q, k_cache, v_cache, mask, scale=0.125, kinds=kinds, threads=threads)
        for threads in (1, 2, 3)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    for stream, ways in enumerate(trees):
        for row in range(0, rows, max(rows // 12, 1)):
            seen = [*range(prefix), *(prefix + at for at in ways[row])]
            plain = np.where(np.arange(cells) < len(seen), 0, -INF).reshape(1, 1, 1, cells)
            alone = []
            for cache in (k_cache, v_cache):
                moved = cache[stream : stream + 1].copy()
                moved[:, : len(seen)] = cache[stream, seen]
                alone.append(moved)
            one = q[stream : stream + 1, :, row : row + 1]
            expected = compute(isa, one, *alone, plain.astype(np.float16), scale=0.125, kinds=kinds)
            np.testing.assert_array_equal(results[0][stream, row], expected[0, 0])


@pytest.mark.parametrize("isa", isas())
def test_cells_after_a_hole_are_moved_up_though_nobody_sees_what_is_between(isa):
    """A whole tile lies in the hole of the only row, and another begins where its cells end."""
    _, q, k, v = random_case(5, rows=1, cells=320)
    (k_cache, _), (v_cache, _) = cache_of(k, F16), cache_of(v, F16)
    seen = [*range(10, 60), *range(250, 262)]
    mask = np.full((1, 1, 1, 320), -INF, np.float16)
    mask[..., seen] = 0
    actual = compute(isa, q, k_cache, v_cache, mask, scale=0.125)
    plain = np.full((1, 1, 1, 320), -INF, np.float16)
    plain[..., 10:72] = 0
    for cache in (k_cache, v_cache):
        cache[:, 60:72] = cache[:, 250:262].copy()
    np.testing.assert_array_equal(actual, compute(isa, q, k_cache, v_cache, plain, scale=0.125))


@pytest.mark.parametrize("isa", isas())
def test_rows_that_see_nothing_or_only_the_end(isa):
    _, *case = random_case(6, rows=3, cells=256)
    mask = np.full((1, 1, 3, 256), -INF, dtype=np.float16)
    mask[0, 0, 1, 255] = 0
    mask[0, 0, 2, 10] = 0
    out = check(isa, case, mask)
    assert not out[0, 0].any()
    check(isa, case, mask, sinks=np.zeros(6))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("factor", [1e-4, 30.0, 1000.0])
def test_extreme_logits(isa, factor):
    rng, q, k, v = random_case(7, rows=5, cells=200)
    check(
        isa,
        (q * np.float32(factor), k, v),
        random_mask(rng, 5, 200),
        tolerance=2e-3 if factor > 100 else 1e-4,
    )


@pytest.mark.parametrize("isa", isas())
def test_extreme_values(isa):
    _, q, k, v = random_case(8, rows=2, cells=100)
    v *= np.float32(15000)
    check(isa, (q, k, v), None, tolerance=0.5)
    v *= np.float32(1e-11)  # subnormal float16 and zeros
    check(isa, (q, k, v), None, tolerance=1e-9)


def test_what_is_not_supported():
    library = ctypes.CDLL(str(LIBRARY))
    good = {"type_k": F16, "type_v": F16, "k_size": 64, "v_size": 64, "rows": 1, "heads": 4, "kv_heads": 2}
    good |= {"cells": 1, "streams": 1}
    for change in (
        {"type_k": 2},
        {"type_v": 30},
        {"k_size": 72},
        {"kv_heads": 3},
        {"type_k": Q8_0, "k_size": 48},
    ):
        op = Operation(**(good | change))
        assert library.specx_attention(0, ctypes.byref(op), 1) == 1, change
