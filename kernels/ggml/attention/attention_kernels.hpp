// The inner loops of attention, written once over a vector type and compiled for each instruction set.
//
// A vector type V has: reg, kWidth (4, 8 or 16 floats), kVectors (vectors a row of the register tile spans),
// keep (in a register: GCC would rather load it again for each use), load, store, set, add, mul, fma (a * b + c), max, min, div, select_below (a < b ? x : y), round_even,
// power_of_two (2^n for whole n >= -126), reduce_add, reduce_max, load_half (float16 to float32),
// load_int8, and transpose (kWidth rows of 4 floats to 4 vectors).
//
// Everything here has internal linkage, and nothing of the standard library is instantiated: a function
// compiled for a newer processor must never be merged with the same function of another file.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention_tile.hpp"

namespace specx {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kF16 = 1, kQ8_0 = 8;  // ggml's numbers
constexpr int64_t kQ8Block = 32, kQ8Bytes = 34;

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

template <class V>
void load_row(int64_t type, const char* source, int64_t size, float* out) {
    if (type == kF16) {
        const auto* halves = reinterpret_cast<const uint16_t*>(source);
        for (int64_t i = 0; i < size; i += V::kWidth) V::store(out + i, V::load_half(halves + i));
        return;
    }
    for (int64_t block = 0; block < size / kQ8Block; ++block) {
        const char* start = source + block * kQ8Bytes;
        uint16_t halves[V::kWidth] = {};
        std::memcpy(halves, start, 2);
        float scales[V::kWidth];
        V::store(scales, V::load_half(halves));
        auto scale = V::set(scales[0]);
        const auto* quants = reinterpret_cast<const int8_t*>(start + 2);
        for (int64_t i = 0; i < kQ8Block; i += V::kWidth) {
            V::store(out + block * kQ8Block + i, V::mul(scale, V::load_int8(quants + i)));
        }
    }
}

template <class V>
void load_values(int64_t type, const char* source, int64_t stride, int cells, int64_t v_size, float* values) {
    for (int cell = 0; cell < cells; ++cell) {
        load_row<V>(type, source + cell * stride, v_size, values + cell * v_size);
    }
}

// Columns are computed 16 at a time.
constexpr int whole_columns(int cells) { return (cells + 15) / 16 * 16; }

template <class V>
void load_keys(int64_t type, const char* source, int64_t stride, int cells, int64_t k_size, float* rows,
               float* keys) {
    for (int cell = 0; cell < whole_columns(cells); cell += V::kWidth) {
        for (int i = 0; i < V::kWidth; ++i) {
            float* row = rows + i * k_size;
            if (cell + i < cells) {
                load_row<V>(type, source + (cell + i) * stride, k_size, row);
            } else {
                std::memset(row, 0, sizeof(float) * k_size);
            }
        }
        for (int64_t d = 0; d < k_size; d += 4) {
            V::transpose(rows + d, k_size, keys + d * kTileCells + cell, kTileCells);
        }
    }
}

constexpr uint16_t kMinusInfinity = 0xFC00;  // as a float16

int visible_cells(const uint16_t* mask, int cells) {
    if (mask[cells - 1] != kMinusInfinity) return cells;
    unsigned different = 0;
    for (int i = 0; i < cells; ++i) different |= mask[i] ^ kMinusInfinity;
    if (different == 0) return 0;
    while (mask[cells - 1] == kMinusInfinity) --cells;
    return cells;
}

// c[i][0 .. kVectors * kWidth) = sum over k of a[i][k] * b[k][...] for kRows rows, in the order of k.
template <class V, int kRows, int kVectors>
void multiply_block(const float* const* a, const float* b, int64_t b_stride, int64_t depth, float* const* c,
                    int64_t column) {
    typename V::reg sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) sum[i][j] = V::set(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        typename V::reg right[kVectors];
        for (int j = 0; j < kVectors; ++j) {
            right[j] = V::load(b + k * b_stride + j * V::kWidth);
            if constexpr (kRows > 2) V::keep(&right[j]);
        }
        for (int i = 0; i < kRows; ++i) {
            auto left = V::set(a[i][k]);
            for (int j = 0; j < kVectors; ++j) sum[i][j] = V::fma(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) V::store(c[i] + column + j * V::kWidth, sum[i][j]);
    }
}

// The same over the first `width` columns, a multiple of 16.
template <class V, int kRows>
void multiply_rows(const float* const* a, const float* b, int64_t b_stride, int64_t width, int64_t depth,
                   float* const* c) {
    constexpr int kStep = V::kVectors * V::kWidth;
    int64_t column = 0;
    for (; column + kStep <= width; column += kStep) {
        multiply_block<V, kRows, V::kVectors>(a, b + column, b_stride, depth, c, column);
    }
    if constexpr (kStep > 16) {
        for (; column < width; column += 16) {
            multiply_block<V, kRows, 16 / V::kWidth>(a, b + column, b_stride, depth, c, column);
        }
    }
}

template <class V>
void multiply(int n, const float* const* a, const float* b, int64_t b_stride, int64_t width, int64_t depth,
              float* const* c) {
    switch (n) {
        case 1: return multiply_rows<V, 1>(a, b, b_stride, width, depth, c);
        case 2: return multiply_rows<V, 2>(a, b, b_stride, width, depth, c);
        case 3: return multiply_rows<V, 3>(a, b, b_stride, width, depth, c);
        case 4: return multiply_rows<V, 4>(a, b, b_stride, width, depth, c);
        case 5: return multiply_rows<V, 5>(a, b, b_stride, width, depth, c);
        default: return multiply_rows<V, 6>(a, b, b_stride, width, depth, c);
    }
}

// Turn a row of dot products with `cells` cells into e^(logit - maximum), and set the row's state.
template <class V>
RowState softmax(float* row, int cells, const uint16_t* mask, float slope, Logits logits) {
    const int columns = whole_columns(cells);
    uint16_t tail[kTileCells];
    if (cells < columns) {  // cells that do not exist are masked
        for (int i = 0; i < columns; ++i) tail[i] = i >= cells ? kMinusInfinity : mask != nullptr ? mask[i] : 0;
        mask = tail;
    }
    auto maximum = V::set(-kInfinity);
    for (int i = 0; i < columns; i += V::kWidth) {
        auto x = V::mul(V::load(row + i), V::set(logits.scale));
        if (logits.softcap != 0.0f) x = V::mul(hyperbolic_tangent<V>(x), V::set(logits.softcap));
        if (mask != nullptr) x = V::fma(V::load_half(mask + i), V::set(slope), x);
        V::store(row + i, x);
        maximum = V::max(maximum, x);
    }
    RowState state = {V::reduce_max(maximum), 0.0f};
    auto sum = V::set(0.0f);
    for (int i = 0; i < columns; i += V::kWidth) {
        auto p = exponential<V>(V::add(V::load(row + i), V::set(-state.maximum)));
        V::store(row + i, p);
        sum = V::add(sum, p);
    }
    state.sum = V::reduce_add(sum);
    return state;
}

// `kWhole`: with all cells of the tile, whose number compilers then know (5% faster).
template <class V, bool kWhole>
void attend_cells(int n, const float* const* q, const float* keys, const float* values, int64_t k_size, int64_t v_size,
                  int cells, const uint16_t* const* mask, const float* slope, Logits logits, float* const* value,
                  RowState* const* state) {
    if constexpr (kWhole) cells = kTileCells;
    alignas(64) float weights[kRowGroup][kTileCells];
    float* rows[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) rows[i] = weights[i];
    multiply<V>(n, q, keys, kTileCells, whole_columns(cells), k_size, rows);
    for (int i = 0; i < n; ++i) *state[i] = softmax<V>(rows[i], cells, mask[i], slope[i], logits);
    multiply<V>(n, rows, values, v_size, v_size, cells, value);
}

template <class V>
void attend(int n, const float* const* q, const float* keys, const float* values, int64_t k_size, int64_t v_size,
            int cells, const uint16_t* const* mask, const float* slope, Logits logits, float* const* value,
            RowState* const* state) {
    const auto chosen = cells == kTileCells ? attend_cells<V, true> : attend_cells<V, false>;
    chosen(n, q, keys, values, k_size, v_size, cells, mask, slope, logits, value, state);
}

template <class V>
void fold(int64_t v_size, RowState* state, float* value, RowState later, const float* later_value) {
    if (later.maximum == -kInfinity) return;
    if (state->maximum == -kInfinity) {
        *state = later;
        std::memcpy(value, later_value, sizeof(float) * v_size);
        return;
    }
    bool grows = later.maximum > state->maximum;
    float now = grows ? scalar_exponential<V>(state->maximum - later.maximum) : 1.0f;
    float then = grows ? 1.0f : scalar_exponential<V>(later.maximum - state->maximum);
    if (grows) state->maximum = later.maximum;
    state->sum = state->sum * now + later.sum * then;
    for (int64_t i = 0; i < v_size; i += V::kWidth) {
        auto sum = V::mul(V::load(value + i), V::set(now));
        V::store(value + i, V::fma(V::load(later_value + i), V::set(then), sum));
    }
}

template <class V>
void finish(int64_t v_size, RowState state, const float* value, float* out) {
    if (state.maximum == -kInfinity) {
        std::memset(out, 0, sizeof(float) * v_size);
        return;
    }
    auto factor = V::set(1.0f / state.sum);
    for (int64_t i = 0; i < v_size; i += V::kWidth) V::store(out + i, V::mul(V::load(value + i), factor));
}

template <class V>
constexpr AttentionKernels kernels_of() {
    return {load_keys<V>, load_values<V>, visible_cells, attend<V>, fold<V>, finish<V>};
}

}  // namespace
}  // namespace specx
