"""Layers of experts on the ggml device: the multiplication itself, and small models of random weights."""

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from specx.kernels import _native

LIBRARY = Path(_native.__file__).with_name("libspecx-ggml.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the ggml device was not built")

ISAS = range(7)
KINDS = [Type.Q4_0, Type.Q8_0, Type.Q4_K]


def random_weights(rng, kind, *shape):
    """Quantized weights of about 1/50: random bytes, but for the half floats that scale a block."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // per_block, size), dtype=np.uint8)
    spread = {Type.Q4_0: 5, Type.Q8_0: 75, Type.Q4_K: 150}[kind]
    scale = rng.uniform(0.5, 1.5, (len(blocks), 1)) / 50 / spread
    blocks[:, :2] = np.float16(scale).view(np.uint8)
    if kind == Type.Q4_K:
        blocks[:, 2:4] = np.float16(7.5 * scale).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


# ---- The multiplication


class Experts(ctypes.Structure):
    """`specx::Experts` of kernels/ggml/experts/experts.hpp."""

    _fields_ = [
        ("type", ctypes.c_int),
        *[(name, ctypes.c_int64) for name in ("k", "rows", "count")],
        ("packed", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("tokens", "slots")],
        ("x", ctypes.c_void_p),
        ("x_slots", ctypes.c_int64),
        *[(name, ctypes.c_size_t) for name in ("x_token", "x_slot")],
        ("ids", ctypes.c_void_p),
        *[(name, ctypes.c_size_t) for name in ("ids_token", "ids_slot")],
        ("out", ctypes.c_void_p),
        *[(name, ctypes.c_size_t) for name in ("out_token", "out_slot")],
    ]


@pytest.fixture(scope="module")
def c():
    library = ctypes.CDLL(str(LIBRARY))
    library.specx_matmul_packed_size.restype = ctypes.c_uint64
    library.specx_matmul_scratch_size.restype = ctypes.c_uint64
    return library


def aligned(size):
    memory = np.full(size + 64, 0xAA, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def at(array):
    return ctypes.c_void_p(array.ctypes.data)


def long(value):
    return ctypes.c_int64(value)


def pack(c, kind, weights):
    """Experts [count, rows, bytes] to packed matrices, one row of the result each (and aligned)."""
    count, rows, row_bytes = weights.shape
    k = row_bytes // gguf.GGML_QUANT_SIZES[kind][1] * gguf.GGML_QUANT_SIZES[kind][0]
    size = c.specx_matmul_packed_size(kind, long(k), long(rows))
    packed = aligned(count * size).reshape(count, size)
    for source, target in zip(weights, packed, strict=True):
        c.specx_matmul_pack(kind, long(k), long(rows), at(source), at(target), long(0), long(rows))
    return packed


def quantize(c, kind, x, isa):
    n, k = x.shape
    scratch = aligned(c.specx_matmul_scratch_size(kind, long(k), long(n)))
    c.specx_matmul_quantize(
        isa, kind, long(k), long(n), at(x), ctypes.c_uint64(x.strides[0]), at(scratch), 0, 1
    )
    return scratch


def one_by_one(c, kind, packed, rows, x, ids):
    """What a layer of experts is to compute: each token with each of its experts alone."""
    isa = c.specx_best_isa()
    tokens, slots = ids.shape
    out = np.zeros((tokens, slots, rows), np.float32)
    for token, slot in np.ndindex(tokens, slots):
        row = np.ascontiguousarray(x[token, slot % x.shape[1]])[None]
        sizes = (long(row.shape[1]), long(rows), long(1))
        where = (at(packed[ids[token, slot]]), at(quantize(c, kind, row, isa)), at(out[token, slot]))
        c.specx_matmul_multiply(isa, kind, *sizes, *where, ctypes.c_uint64(0), 0, 1)
    return out


def operation(kind, packed, rows, x, ids, out):
    return Experts(
        *(kind, x.shape[2], rows, len(packed), packed.ctypes.data, *ids.shape),
        *(x.ctypes.data, x.shape[1], *x.strides[:2]),
        *(ids.ctypes.data, *ids.strides),
        *(out.ctypes.data, *out.strides[:2]),
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tokens, slots, x_slots", [(1, 2, 1), (1, 4, 4), (5, 2, 1), (9, 4, 2), (100, 3, 3)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_is_the_same_as_one_by_one(c, kind, tokens, slots, x_slots, threads):
    rng = np.random.default_rng(tokens)
    k, rows, count = 512, 150, 6
    matrices = [pack(c, kind, random_weights(rng, kind, count, rows, k)) for _ in range(2)]
    x = rng.standard_normal((tokens, x_slots, k + 8), np.float32)[:, :, :k]
    # As it comes from the router: the first columns of a wider array. Expert 4 is left out, 5 is popular.
    ids = rng.choice(np.int32([0, 1, 2, 3, 5, 5, 5, 5]), (tokens, slots + 3))[:, :slots]
    outs = [np.full((tokens, slots, rows + 5), -1.0, np.float32) for _ in matrices]
    both = [operation(kind, m, rows, x, ids, out) for m, out in zip(matrices, outs, strict=True)]
    assert c.specx_experts_multiply(ctypes.byref(both[0]), ctypes.byref(both[1]), threads)
    for matrix, out in zip(matrices, outs, strict=True):
        np.testing.assert_array_equal(out[:, :, :rows], one_by_one(c, kind, matrix, rows, x, ids))
        assert (out[:, :, rows:] == -1.0).all()


def test_ids_out_of_range_are_left_alone(c):
    rng = np.random.default_rng(0)
    packed = pack(c, Type.Q8_0, random_weights(rng, Type.Q8_0, 3, 32, 64))
    x = rng.standard_normal((2, 1, 64), np.float32)
    out = np.full((2, 2, 32), -1.0, np.float32)
    ids = np.int32([[2, -1], [3, 1 << 30]])
    assert c.specx_experts_multiply(ctypes.byref(operation(Type.Q8_0, packed, 32, x, ids, out)), None, 2)
    assert (out[0, 1] == -1.0).all() and (out[1] == -1.0).all()
    np.testing.assert_array_equal(out[:1, :1], one_by_one(c, Type.Q8_0, packed, 32, x[:1], ids[:1, :1]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [2, 3, 6, 7, 8, 12, 13, 14, 20])
def test_rows_quantized_alone_are_joined_as_if_together(c, isa, kind):
    if not c.specx_isa_available(isa):
        pytest.skip("not on this machine")
    x = np.random.default_rng(kind).standard_normal((37, 256), np.float32)
    for n in (1, 2, 7, 16, 37):
        alone = [quantize(c, kind, row[None], isa) for row in x[:n]]
        together = quantize(c, kind, x[:n], isa)
        joined = aligned(len(together))
        rows = (ctypes.c_void_p * n)(*[row.ctypes.data for row in alone])
        c.specx_matmul_join(isa, kind, long(256), long(n), rows, at(joined))
        used = n * len(x[0]) // 32 * (44 if kind == Type.Q6_K else 40)
        np.testing.assert_array_equal(joined[:used], together[:used])


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16])
@pytest.mark.parametrize("k", [5, 64, 2056])
def test_matrices_of_floats_are_bit_identical_and_right(c, k, kind):
    rng = np.random.default_rng(k)
    values = rng.standard_normal((11, k + 3), np.float32)
    values[:3] *= 1e-6  # subnormal halves
    stored = gguf.quantize(values, kind)
    values = gguf.dequantize(stored, kind)[:, :k]
    w = stored.view(np.uint16 if kind == Type.BF16 else stored.dtype)[:, :k]
    x = rng.standard_normal((29, k + 1), np.float32)[:, :k]

    def multiply(isa, n, parts):
        out = np.full((29, 12), -1.0, np.float32)
        operands = [value for a in (w, x, out) for value in (at(a), ctypes.c_uint64(a.strides[0]))]
        for part in range(parts):
            c.specx_float_multiply(isa, int(kind), long(k), long(11), long(n), *operands, part, parts)
        assert (out[:, 11:] == -1.0).all() and (out[n:] == -1.0).all()
        return out[:n, :11]

    expected = multiply(0, 29, 1)
    assert np.abs(expected - np.float64(x) @ np.float64(values).T).max() < 1e-6 * k
    for isa in filter(c.specx_isa_available, ISAS):
        for n in (1, 2, 3, 6, 13, 29):
            for parts in (1, 4, 500):
                np.testing.assert_array_equal(multiply(isa, n, parts), expected[:n])


# ---- Models

LAYERS, WIDTH, HIDDEN, COUNT, USED, VOCABULARY = 3, 256, 512, 8, 2, 320


def write_model(path, kind, *, exact=False):
    """A model of random weights with experts; `exact`: the same weights, but stored as floats."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    for name, value in {
        "vocab_size": VOCABULARY,
        "context_length": 1024,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "head_count": 4,
        "head_count_kv": 2,
        "rope_dimension_count": 64,
        "expert_count": COUNT,
        "expert_used_count": USED,
        "layer_norm_rms_eps": 1e-5,
    }.items():
        getattr(writer, f"add_{name}")(value)

    def quantized(name, *shape, kind=Type.Q8_0):
        data = random_weights(rng, kind, *shape)
        if exact:
            writer.add_tensor(f"{name}.weight", gguf.quants.dequantize(data, kind))
        else:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    def floats(name, *shape, mean=0.0, spread=0.1):
        values = mean + spread * rng.standard_normal(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    quantized("token_embd", VOCABULARY, WIDTH)
    quantized("output", VOCABULARY, WIDTH)
    floats("output_norm", WIDTH, mean=1.0)
    for layer in (f"blk.{i}" for i in range(LAYERS)):
        floats(f"{layer}.attn_norm", WIDTH, mean=1.0)
        for name, rows in {"q": 256, "k": 128, "v": 128, "output": 256}.items():
            quantized(f"{layer}.attn_{name}", rows, WIDTH)
        floats(f"{layer}.ffn_norm", WIDTH, mean=1.0)
        floats(f"{layer}.ffn_gate_inp", COUNT, WIDTH)
        quantized(f"{layer}.ffn_gate_exps", COUNT, HIDDEN, WIDTH, kind=kind)
        quantized(f"{layer}.ffn_up_exps", COUNT, HIDDEN, WIDTH, kind=kind)
        quantized(f"{layer}.ffn_down_exps", COUNT, WIDTH, HIDDEN, kind=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


DECODE = """
import ctypes, json, sys
import llama_cpp as llama
import numpy as np

model_path, out_path, library, widths, n_threads = json.loads(sys.argv[1])
TOKENS, DEPTH = 48, 40

@llama.llama_log_callback
def log(_level, text, _data):
    sys.stdout.write(text.decode())

llama.llama_log_set(log, None)
llama.llama_backend_init()
if library:
    load_device = llama.llama_cpp._lib.ggml_backend_load
    load_device.restype, load_device.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    assert load_device(library.encode())
    ctypes.CDLL(library).specx_ggml_enable(1, 1)
model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 512, 256, n_threads, n_threads
params.flash_attn_type = 1
context = llama.llama_init_from_model(model, params)
memory = llama.llama_get_memory(context)
n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
tokens = np.random.default_rng(0).integers(0, n_vocab, TOKENS + DEPTH)
batch = llama.llama_batch_init(256, 0, 1)

def decode(start, count):
    batch.n_tokens = count
    for i in range(count):
        batch.token[i], batch.pos[i], batch.logits[i] = int(tokens[start + i]), start + i, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama.llama_decode(context, batch) == 0
    return np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(count, n_vocab)).copy()

results = {}
for width in widths:
    llama.llama_memory_clear(memory, False)
    decode(0, DEPTH)
    steps = range(0, TOKENS, width)
    results[str(width)] = np.concatenate([decode(DEPTH + at, min(width, TOKENS - at)) for at in steps])
np.savez(out_path, **results)
"""


def decode(tmp_path, model, *, device, widths, n_threads=2):
    """Logits of 48 tokens decoded in batches of every width, {width: (48, vocab)}, and llama.cpp's log."""
    out = tmp_path / "logits.npz"
    job = json.dumps([str(model), str(out), str(LIBRARY) if device else "", list(widths), n_threads])
    command = [sys.executable, "-P", "-c", DECODE, job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as arrays:
        return {int(width): rows for width, rows in arrays.items()}, done.stdout


def distance(actual, expected):
    """Kullback-Leibler divergence of the two next-token distributions, in nats, of the row in the middle.

    The mean would measure the few rows in which rounding chose another expert.
    """
    log_p, log_q = (
        rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)
        for rows in map(np.float64, (expected, actual))
    )
    return float(np.median(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_models_with_experts(tmp_path, kind):
    """The same logits at every width, as near to those of exact arithmetic as llama.cpp's own."""
    exact, _ = decode(tmp_path, write_model(tmp_path / "exact", kind, exact=True), device=False, widths=[1])
    model = write_model(tmp_path / "model", kind)
    stock, _ = decode(tmp_path, model, device=False, widths=[1])
    device, log = decode(tmp_path, model, device=True, widths=range(1, 17))
    for width, rows in device.items():
        np.testing.assert_array_equal(rows, device[1], err_msg=f"width {width}")
    # Activations have 8 bits in both; llama.cpp takes blocks of 32 or of 256 for them, we of 32.
    assert distance(device[1], exact[1]) < 1.5 * distance(stock[1], exact[1])

    packed = re.search(r"specx model buffer size = +([\d.]+) MiB", log)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    weights = LAYERS * 3 * COUNT * HIDDEN * WIDTH // per_block * size
    assert packed and float(packed[1]) * 2**20 >= weights


def test_number_of_threads_makes_no_difference(tmp_path):
    model = write_model(tmp_path / "model", Type.Q4_0)
    one, _ = decode(tmp_path, model, device=True, widths=[1, 7], n_threads=1)
    four, _ = decode(tmp_path, model, device=True, widths=[1, 7], n_threads=4)
    for width, rows in one.items():
        np.testing.assert_array_equal(four[width], rows)
