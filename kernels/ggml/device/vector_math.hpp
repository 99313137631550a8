// Functions of vectors of floats, written once and compiled for each instruction set.
//
// A vector type V (vector_*.hpp) has: reg, kWidth (4, 8 or 16 floats), kVectors (vectors a row of attention's register
// tile spans), keep (in a register: GCC would rather load it again for each use), load, store, set, add, mul, fma
// (a * b + c), max, min, div, select_below (a < b ? x : y), round_even, power_of_two (2^n for whole n >= -126),
// swap_pairs (of neighbours), reduce_max, fold_sums (16 sums, in 16 / kWidth vectors, to one in a fixed order), load_half (float16 to float32),
// store_half (rounded to nearest even), set_half (one of them everywhere) and load_int8.
//
// Everything here has internal linkage: a function compiled for a newer processor must never be merged with the same
// function of another file.
#pragma once

namespace specx {
namespace {

// e^x, relative error below 2e-7; 0 below -87.3, NaN for NaN. For x <= 0 (up to 88 works too).
template <class V>
typename V::reg exponential(typename V::reg x) {
    auto clamped = V::max(V::set(-87.3f), x);  // in this order a NaN stays one on x86
    auto n = V::round_even(V::mul(clamped, V::set(1.44269504f)));
    auto r = V::fma(n, V::set(-0.693145752f), clamped);  // ln 2 in two parts: n times the first is exact
    r = V::fma(n, V::set(-1.42860677e-6f), r);
    auto p = V::set(1.0f / 5040);
    p = V::fma(p, r, V::set(1.0f / 720));
    p = V::fma(p, r, V::set(1.0f / 120));
    p = V::fma(p, r, V::set(1.0f / 24));
    p = V::fma(p, r, V::set(1.0f / 6));
    p = V::fma(p, r, V::set(0.5f));
    p = V::fma(p, r, V::set(1.0f));
    p = V::fma(p, r, V::set(1.0f));
    auto result = V::mul(p, V::power_of_two(n));
    return V::select_below(x, V::set(-87.3f), V::set(0.0f), result);
}

// tanh x = 1 - 2 / (e^2x + 1); the absolute error is below 2e-7, which `softcap` multiplies.
template <class V>
typename V::reg hyperbolic_tangent(typename V::reg x) {
    auto bounded = V::max(V::set(-20.0f), V::min(V::set(20.0f), x));
    auto e = exponential<V>(V::mul(bounded, V::set(2.0f)));
    return V::add(V::set(1.0f), V::div(V::set(-2.0f), V::add(e, V::set(1.0f))));
}

template <class V>
float scalar_exponential(float x) {
    float lanes[V::kWidth];
    V::store(lanes, exponential<V>(V::set(x)));
    return lanes[0];
}

}  // namespace
}  // namespace specx
