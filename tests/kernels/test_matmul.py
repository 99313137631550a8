"""The multiplication kernels against their NumPy reference, on every instruction set of this machine."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels import _native
from specx.kernels.reference import matmul as reference

LIBRARY = Path(_native.__file__).with_name("libspecx-ggml.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the ggml device was not built")

GENERIC = 0
ISAS = ("generic", "avx2", "avx_vnni", "avx512_vnni", "neon_dotprod", "neon_i8mm", "amx_int8")
NAMES = {name: number for number, (name, *_) in reference.TYPES.items()}
# Where the half-float scales are: d, and the scale of the minima after it.
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}

types = pytest.mark.parametrize("name", NAMES)
isas = pytest.mark.parametrize("isa", range(len(ISAS)), ids=ISAS)


class Library:
    """The C functions of kernels/ggml/matmul/matmul_c.cpp."""

    def __init__(self) -> None:
        self.c = ctypes.CDLL(str(LIBRARY))
        for name in ("packed_size", "scratch_size"):
            getattr(self.c, f"specx_matmul_{name}").restype = ctypes.c_uint64
        self.c.specx_isa_name.restype = ctypes.c_char_p

    def available(self, isa: int) -> bool:
        return bool(self.c.specx_isa_available(isa))

    def size(self, what: str, *shape: int) -> int:
        first, *rest = shape
        return int(getattr(self.c, f"specx_matmul_{what}")(first, *map(ctypes.c_int64, rest)))

    def pack(self, kind: int, data: np.ndarray) -> np.ndarray:
        rows, k = len(data), weights_of(kind, data)
        packed = aligned(self.size("packed_size", kind, k, rows), fill=0xAA)
        shape = (kind, ctypes.c_int64(k), ctypes.c_int64(rows))
        half = rows // 32 * 16  # in two ranges, as two threads would
        for first, count in ((half, rows - half), (0, half)):
            source = np.ascontiguousarray(data[first : first + count])
            self.c.specx_matmul_pack(
                *shape, at(source), at(packed), ctypes.c_int64(first), ctypes.c_int64(count)
            )
        return packed

    def unpack(self, kind: int, packed: np.ndarray, like: np.ndarray) -> np.ndarray:
        out = np.empty_like(like)
        size = (ctypes.c_int64(weights_of(kind, like)), ctypes.c_int64(len(like)))
        self.c.specx_matmul_unpack(kind, *size, at(packed), at(out), ctypes.c_int64(0), size[1])
        return out

    def multiply(
        self, isa: int, kind: int, packed: np.ndarray, rows: int, x: np.ndarray, parts: int = 1
    ) -> np.ndarray:
        n, k = x.shape
        out = np.full((n, rows + 3), -1.0, np.float32)  # the three must stay as they are
        scratch = aligned(self.size("scratch_size", kind, k, n), fill=0xAA)
        sizes = [ctypes.c_int64(value) for value in (k, rows, n)]
        for part in reversed(range(parts)):
            stride = ctypes.c_uint64(x.strides[0])
            self.c.specx_matmul_quantize(
                isa, kind, sizes[0], sizes[2], at(x), stride, at(scratch), part, parts
            )
        for part in range(parts):
            stride = ctypes.c_uint64(out.strides[0])
            where = (at(packed), at(scratch), at(out), stride, part, parts)
            self.c.specx_matmul_multiply(isa, kind, *sizes, *where)
        assert (out[:, rows:] == -1.0).all()
        return np.ascontiguousarray(out[:, :rows])


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(size: int, fill: int) -> np.ndarray:
    buffer = np.full(size + 64, fill, np.uint8)
    return buffer[-buffer.ctypes.data % 64 :][:size]


def weights_of(kind: int, data: np.ndarray) -> int:
    _, weights, size, _ = reference.TYPES[kind]
    return data.shape[1] // size * weights


def random_weights(kind: int, rows: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Any bytes are weights, only the half floats among them must be sane."""
    name, _, size, _ = reference.TYPES[kind]
    data = rng.integers(0, 256, (rows * blocks, size), np.uint8)
    for place in SCALES.get(name, (0,)):
        scale = (rng.uniform(0.001, 0.1, len(data)) * rng.choice([-1, 1], len(data))).astype(np.float16)
        data[:, place : place + 2] = scale.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, blocks * size)


def random_activations(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal((n, k)) * rng.uniform(0.01, 10, (n, 1))).astype(np.float32)


def require(library: Library, isa: int) -> None:
    if not library.available(isa):
        pytest.skip(f"this machine has no {ISAS[isa]}")


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@types
def test_reference_decodes_like_gguf(name):
    rng = np.random.default_rng(1)
    data = random_weights(NAMES[name], 5, 3, rng)
    weights = reference.decode(NAMES[name], data)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    np.testing.assert_allclose(
        weights.scale * weights.quant + weights.minimum, expected, rtol=1e-6, atol=1e-5
    )


@types
@pytest.mark.parametrize("rows", [1, 15, 16, 40, 64])
def test_unpack_is_the_inverse_of_pack(library, name, rows):
    kind = NAMES[name]
    data = random_weights(kind, rows, 3, np.random.default_rng(rows))
    packed = library.pack(kind, data)
    groups = (rows + 15) // 16
    assert len(packed) < groups * (16 * data.shape[1] + 64)
    np.testing.assert_array_equal(library.unpack(kind, packed, data), data)


@types
@isas
@pytest.mark.parametrize(
    ("rows", "blocks", "n"), [(1, 1, 1), (16, 1, 3), (37, 5, 8), (100, 4, 40), (20, 2, 512)]
)
def test_product_is_the_references(library, isa, name, rows, blocks, n):
    require(library, isa)
    kind, rng = NAMES[name], np.random.default_rng(rows)
    data = random_weights(kind, rows, blocks, rng)
    x = random_activations(n, weights_of(kind, data), rng)
    got = library.multiply(isa, kind, library.pack(kind, data), rows, x)
    error = np.abs(got - reference.multiply(kind, data, x))
    assert (error <= reference.rounding(kind, data, x)).all()


@types
@isas
def test_a_token_is_the_same_at_every_width_and_on_any_number_of_threads(library, isa, name):
    require(library, isa)
    kind, rng = NAMES[name], np.random.default_rng(3)
    data = random_weights(kind, 50, 3, rng)
    packed, x = library.pack(kind, data), random_activations(40, weights_of(kind, data), rng)
    whole = library.multiply(isa, kind, packed, len(data), x)
    yardstick = library.multiply(GENERIC, kind, packed, len(data), x)
    np.testing.assert_array_equal(whole.view(np.uint32), yardstick.view(np.uint32))
    for n in range(1, 40):
        part = library.multiply(isa, kind, packed, len(data), x[-n:], parts=1 + n % 5)
        np.testing.assert_array_equal(part.view(np.uint32), whole[-n:].view(np.uint32))


@types
@isas
def test_extreme_scales(library, isa, name):
    require(library, isa)
    kind, rng = NAMES[name], np.random.default_rng(4)
    data = random_weights(kind, 32, 2, rng)
    blocks = data.reshape(-1, reference.TYPES[kind][2])
    extremes = np.array([0, 2.0**-24, -(2.0**-24), 65504, -65504, -0.0], np.float16)
    for place in SCALES.get(name, (0,)):
        chosen = rng.choice(extremes, len(blocks))
        blocks[:, place : place + 2] = chosen.view(np.uint8).reshape(-1, 2)
    x = random_activations(9, weights_of(kind, data), rng)
    x *= np.array([0, 1e-45, 1e-38, 1e-36, 1e-30, 1e-10, 1, 1e10, 1e25], np.float32)[:, None]
    got = library.multiply(isa, kind, library.pack(kind, data), len(data), x)
    assert np.isfinite(got).all()
    assert (np.abs(got - reference.multiply(kind, data, x)) <= reference.rounding(kind, data, x)).all()


@types
@isas
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_spoils_its_token_alone(library, isa, name, value):
    require(library, isa)
    kind, rng = NAMES[name], np.random.default_rng(5)
    data = random_weights(kind, 16, 2, rng)
    packed, x = library.pack(kind, data), random_activations(4, weights_of(kind, data), rng)
    clean = library.multiply(isa, kind, packed, len(data), x)
    x[2, 17] = value
    spoiled = library.multiply(isa, kind, packed, len(data), x)
    assert np.isnan(spoiled[2]).all()
    np.testing.assert_array_equal(np.delete(spoiled, 2, 0), np.delete(clean, 2, 0))


@types
def test_only_whole_blocks_are_supported(library, name):
    kind, block = NAMES[name], reference.TYPES[NAMES[name]][1]
    supported = [library.size("supported", kind, k, rows) for k, rows in ((block, 1), (3 * block, 7))]
    refused = [library.size("supported", kind, k, rows) for k, rows in ((block - 1, 1), (0, 1), (block, 0))]
    assert (supported, refused) == ([1, 1], [0, 0, 0])


@pytest.mark.parametrize("kind", [-1, 0, 1, 9, 10, 30, 99])
def test_other_types_are_not_supported(library, kind):
    assert not library.size("supported", kind, 256, 16)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(NAMES)),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 5),
    n=st.integers(1, 40),
    parts=st.integers(1, 7),
    exponent=st.integers(-40, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(name, rows, blocks, n, parts, exponent, seed):
    library, kind, rng = Library(), NAMES[name], np.random.default_rng(seed)
    data = random_weights(kind, rows, blocks, rng)
    x = (random_activations(n, weights_of(kind, data), rng) * 10.0**exponent).astype(np.float32)
    packed = library.pack(kind, data)
    np.testing.assert_array_equal(library.unpack(kind, packed, data), data)
    yardstick = library.multiply(GENERIC, kind, packed, rows, x)
    assert (np.abs(yardstick - reference.multiply(kind, data, x)) <= reference.rounding(kind, data, x)).all()
    for isa in filter(library.available, range(1, len(ISAS))):
        got = library.multiply(isa, kind, packed, rows, x, parts)
        np.testing.assert_array_equal(got.view(np.uint32), yardstick.view(np.uint32))
