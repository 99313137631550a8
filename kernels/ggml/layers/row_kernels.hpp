// The functions of rows.hpp, written once over a vector type (vector_math.hpp) and compiled for each instruction set.
#pragma once

#include <cstdint>

#include "rows.hpp"
#include "vector_math.hpp"

namespace specx {

// Each is null where the build's target lacks the instruction set.
const RowKernels* row_kernels_generic();
const RowKernels* row_kernels_avx2();
const RowKernels* row_kernels_avx512();
const RowKernels* row_kernels_neon();

namespace {

template <class V>
void add(int64_t n, const float* a, const float* b, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) V::store(out + i, V::add(V::load(a + i), V::load(b + i)));
}

template <class V>
void multiply(int64_t n, const float* a, const float* b, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) V::store(out + i, V::mul(V::load(a + i), V::load(b + i)));
}

template <class V>
void scale(int64_t n, const float* x, float factor, float bias, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) {
        V::store(out + i, V::add(V::mul(V::load(x + i), V::set(factor)), V::set(bias)));
    }
}

template <class V>
typename V::reg activated(Activation activation, typename V::reg x) {
    auto z = x;
    if (activation == Activation::gelu) {
        x = V::max(V::set(-12.0f), x);  // 0 from here on, but -infinity times 0 is no number
        auto cubic = V::mul(V::mul(V::set(0.044715f), x), V::mul(x, x));
        z = V::mul(V::set(1.59576912f), V::add(x, cubic));
    }
    auto e = exponential<V>(V::min(V::mul(V::set(-1.0f), z), z));  // of -|z|: it cannot overflow
    auto share = V::select_below(z, V::set(0.0f), e, V::set(1.0f));
    return V::div(V::mul(x, share), V::add(V::set(1.0f), e));
}

template <class V>
void activate(Activation activation, int64_t n, const float* x, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) V::store(out + i, activated<V>(activation, V::load(x + i)));
}

template <class V>
void gate(Activation activation, int64_t n, const float* x, const float* up, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) {
        V::store(out + i, V::mul(activated<V>(activation, V::load(x + i)), V::load(up + i)));
    }
}

template <class V>
void squares(int64_t n, const float* x, float* sums) {
    constexpr int vectors = kRowUnit / V::kWidth;
    for (int64_t i = 0; i < n; i += kRowUnit) {
        typename V::reg square[vectors];
        for (int j = 0; j < vectors; ++j) {
            auto v = V::load(x + i + j * V::kWidth);
            square[j] = V::mul(v, v);
        }
        sums[i / kRowUnit] = V::fold_sums(square);
    }
}

template <class V>
void normalize(int64_t n, const float* x, float factor, const float* weight, float* normed, float* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) {
        auto v = V::mul(V::load(x + i), V::set(factor));
        if (normed != nullptr) V::store(normed + i, v);
        V::store(out + i, weight != nullptr ? V::mul(v, V::load(weight + i)) : v);
    }
}

template <class V>
void rotate_halves(int64_t dims, const float* x, const float* table, float* out) {
    const int64_t pairs = dims / 2;
    for (int64_t i = 0; i < pairs; i += V::kWidth) {
        auto cosine = V::load(table + i), sine = V::load(table + pairs + i);
        auto first = V::load(x + i), second = V::load(x + pairs + i);
        auto minus = V::mul(V::set(-1.0f), V::mul(second, sine));
        V::store(out + i, V::add(V::mul(first, cosine), minus));
        V::store(out + pairs + i, V::add(V::mul(second, cosine), V::mul(first, sine)));
    }
}

template <class V>
void rotate_neighbours(int64_t dims, const float* x, const float* table, float* out) {
    for (int64_t i = 0; i < dims; i += V::kWidth) {
        auto both = V::load(x + i);
        auto other = V::mul(V::swap_pairs(both), V::load(table + dims + i));
        V::store(out + i, V::add(V::mul(both, V::load(table + i)), other));
    }
}

template <class V>
void to_half(int64_t n, const float* x, uint16_t* out) {
    for (int64_t i = 0; i < n; i += V::kWidth) V::store_half(out + i, V::load(x + i));
}

template <class V>
constexpr RowKernels row_kernels_of() {
    return {add<V>,     multiply<V>,  scale<V>,  activate<V>, gate<V>,
            squares<V>, normalize<V>, rotate_halves<V>, rotate_neighbours<V>, to_half<V>};
}

}  // namespace
}  // namespace specx
