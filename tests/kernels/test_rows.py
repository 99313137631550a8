"""Norms, activations, rotary embeddings and copies against NumPy, on every instruction set here."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specx.kernels import _native
from specx.kernels.reference import rows as reference

LIBRARY = Path(_native.__file__).with_name("libspecx-ggml.so")
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the ggml device was not built")

ISAS = {"generic": 0, "avx2": 1, "avx512_vnni": 3, "neon_dotprod": 4}
POINTER, INT64, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def isas():
    if not LIBRARY.exists():
        return []
    library = ctypes.CDLL(str(LIBRARY))
    return [name for name, number in ISAS.items() if library.specx_isa_available(number)]


def call(name, isa, *arguments):
    """Pass arrays by address, whole numbers as 64 bits and floats as 32."""

    def passed(value):
        if value is None or isinstance(value, np.ndarray):
            return POINTER(None if value is None else value.ctypes.data)
        return value if isinstance(value, (FLOAT, ctypes.c_int)) else INT64(value)

    getattr(ctypes.CDLL(str(LIBRARY)), f"specx_rows_{name}")(ISAS[isa], *map(passed, arguments))


def floats(seed, n, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def on_all(compute):
    """The result of compute(isa), which has to be the same bits on every instruction set."""
    results = {isa: compute(isa) for isa in isas()}
    first = results["generic"]
    for isa, result in results.items():
        np.testing.assert_array_equal(result.view(np.uint8), first.view(np.uint8), err_msg=isa)
    return first


@pytest.mark.parametrize("n", [16, 48, 576])
def test_sums_and_products_are_those_of_32_bits(n):
    a, b = floats(1, n), floats(2, n)

    def compute(name, *arguments):
        def on(isa):
            out = np.full(n, np.nan, np.float32)
            call(name, isa, n, *arguments, out)
            return out

        return on_all(on)

    np.testing.assert_array_equal(compute("add", a, b), a + b)
    np.testing.assert_array_equal(compute("multiply", a, b), a * b)
    scaled = compute("scale", a, FLOAT(1.7), FLOAT(-0.3))
    np.testing.assert_array_equal(scaled, a * np.float32(1.7) + np.float32(-0.3))


EDGES = np.array(
    [0, -0.0, 1e-30, -1e-30, 87, -87, 88, -89, 1e4, -1e4, 3e38, -3e38, np.inf, np.nan, 5, -5], np.float32
)


@pytest.mark.parametrize(("gelu", "expected"), [(0, reference.silu), (1, reference.gelu)])
def test_activations(gelu, expected):
    x = np.concatenate([floats(3, 4080, spread=4), EDGES])
    up = floats(4, x.size)

    def gated(isa):
        out = np.full(x.size, np.nan, np.float32)
        call("gate", isa, ctypes.c_int(gelu), x.size, x, up, out)
        return out

    def alone(isa):
        out = np.full(x.size, np.nan, np.float32)
        call("activate", isa, ctypes.c_int(gelu), x.size, x, out)
        return out

    result = on_all(alone)
    finite = np.abs(x) < 1e30
    wide = x[finite].astype(np.float64)
    with np.errstate(over="ignore"):
        truth = expected(wide)
    # e^z is as wrong as z is, times z: up to 87 for GELU, whose z is the result of five operations.
    np.testing.assert_allclose(result[finite], truth, rtol=3e-5 if gelu else 2e-6, atol=1e-30)
    assert result[x == np.inf] == np.inf
    assert np.isnan(result[np.isnan(x)]).all()
    assert (result[x < -1e30] == 0).all()
    np.testing.assert_array_equal(on_all(gated), result * up)


def test_minus_infinity_has_a_gelu():
    """Of which ggml says 0; of its SiLU, -infinity times 0, it says that it is no number, and so do these."""
    x = np.full(16, -np.inf, np.float32)
    for gelu, expected in ((1, 0.0), (0, np.nan)):

        def activated(isa, gelu=gelu):
            out = np.ones(16, np.float32)
            call("activate", isa, ctypes.c_int(gelu), 16, x, out)
            return np.where(np.isnan(out), np.float32(np.nan), out)

        np.testing.assert_array_equal(on_all(activated), expected)


@pytest.mark.parametrize("n", [16, 64, 576, 2048])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e6])
def test_norms(n, spread):
    x, weight = floats(5, n, spread), floats(6, n)
    normed = np.full(n, np.nan, np.float32)

    def compute(isa, with_weight):
        out = np.full(n, np.nan, np.float32)
        sums = np.empty(n // 16, np.float32)
        w, kept = (weight, normed) if with_weight else (None, None)
        call("norm", isa, n, x, FLOAT(1e-5), w, sums, kept, out)
        return out

    weighted, plain = on_all(lambda isa: compute(isa, True)), on_all(lambda isa: compute(isa, False))
    expected = reference.rms_norm(x.astype(np.float64), 1e-5)
    np.testing.assert_allclose(plain, expected, rtol=3e-7)
    np.testing.assert_array_equal(plain, normed)
    np.testing.assert_array_equal(weighted, plain * weight)


PLAIN = reference.Rotation(halves=False, dims=64)
YARN = replace(PLAIN, scale=0.25, extrapolation=1.0, trained_context=8192)


@pytest.mark.parametrize(
    "rotation",
    [
        PLAIN,
        replace(PLAIN, halves=True),
        replace(PLAIN, halves=True, dims=32, base=1e6),
        replace(PLAIN, dims=16, scale=0.125, magnitude=1.2),
        YARN,
        replace(YARN, halves=True, dims=128),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 777, 131071, 1000000])
@pytest.mark.parametrize("with_factors", [False, True])
def test_rotary_embeddings(rotation, position, with_factors):
    x = floats(7, rotation.dims)
    factors = 1 + np.abs(floats(8, rotation.dims // 2)) if with_factors else None
    names = ("base", "scale", "extrapolation", "magnitude", "beta_fast", "beta_slow")
    numbers = np.array([getattr(rotation, name) for name in names], np.float32)

    def compute(isa):
        out, table = np.full(rotation.dims, np.nan, np.float32), np.empty(2 * rotation.dims, np.float32)
        kind = ctypes.c_int(rotation.halves)
        call("rotate", isa, kind, rotation.dims, rotation.trained_context, numbers, factors,
             ctypes.c_int(position), x, table, out)  # fmt: skip
        return out

    exact = replace(rotation, magnitude=float(numbers[3]))
    wide = None if factors is None else factors.astype(np.float64)
    expected = reference.rotate(x.astype(np.float64), exact, position, wide)
    np.testing.assert_allclose(on_all(compute), expected, rtol=0, atol=1e-6)


def test_halves_are_rounded_as_numpy_does():
    """Every half float, what lies in the middle of two, and what lies just beside that."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    with np.errstate(over="ignore"):
        following = np.nextafter(finite.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    middle = (finite + np.where(np.isfinite(following), following, 65536)) / 2
    near = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([halves, middle.astype(np.float32), *near, floats(9, 64, 1e5), floats(10, 64, 1e-6)])
    x = np.resize(x.astype(np.float32), x.size // 16 * 16)

    def compute(isa):
        out = np.zeros(x.size, np.uint16)
        call("to_half", isa, x.size, x, out)
        return out

    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    result = on_all(compute).view(np.float16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(result[numbers].view(np.uint16), expected[numbers].view(np.uint16))
    assert np.isnan(result[~numbers]).all()
