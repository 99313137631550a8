// The inner loops of attention, written once over a vector type and compiled for each instruction set.
//
// A vector type V has what vector_math.hpp says, kCells, and transpose_halves and transpose_bytes (16 bytes of each of
// kCells rows to 8 columns of float16 or 16 of int8).
//
// Everything here has internal linkage, and nothing of the standard library is instantiated: a function
// compiled for a newer processor must never be merged with the same function of another file.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention_tile.hpp"
#include "vector_math.hpp"

namespace specx {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kF16 = 1, kQ8_0 = 8;  // ggml's numbers
constexpr int64_t kQ8Block = 32, kQ8Bytes = 34;

template <class V>
void widen_values(const Values& values, int cells, int64_t v_size, float* floats) {
    for (int cell = 0; cell < cells; ++cell) {
        for (int64_t block = 0; block < v_size / kQ8Block; ++block) {
            const char* start = static_cast<const char*>(values.start) + cell * values.stride + block * kQ8Bytes;
            auto scale = V::set_half(start);
            const auto* quants = reinterpret_cast<const int8_t*>(start + 2);
            float* out = floats + cell * v_size + block * kQ8Block;
            for (int64_t i = 0; i < kQ8Block; i += V::kWidth) {
                V::store(out + i, V::mul(scale, V::load_int8(quants + i)));
            }
        }
    }
}

// Columns are computed 16 at a time.
constexpr int whole_columns(int cells) { return (cells + 15) / 16 * 16; }

constexpr int64_t kLargestRow = 2048;  // bytes: 1024 of float16

// V::kCells cells from `rows` on, to columns of `keys`.
template <class V>
void transpose_keys(int64_t type, const char* rows, int64_t stride, int64_t k_size, int column, const Keys& keys) {
    if (type == kF16) {
        auto* halves = static_cast<uint16_t*>(keys.start) + column;
        for (int64_t d = 0; d < k_size; d += 8) {
            V::transpose_halves(rows + 2 * d, stride, halves + d * kTileCells, kTileCells);
        }
        return;
    }
    auto* quants = static_cast<int8_t*>(keys.start) + column;
    for (int64_t block = 0; block < k_size / kQ8Block; ++block) {
        const char* start = rows + block * kQ8Bytes;
        uint16_t scales[V::kCells];
        for (int i = 0; i < V::kCells; ++i) std::memcpy(scales + i, start + i * stride, 2);
        for (int i = 0; i < V::kCells; i += V::kWidth) {
            V::store(keys.scales + block * kTileCells + column + i, V::load_half(scales + i));
        }
        int8_t* out = quants + block * kQ8Block * kTileCells;
        V::transpose_bytes(start + 2, stride, out, kTileCells);
        V::transpose_bytes(start + 18, stride, out + 16 * kTileCells, kTileCells);
    }
}

template <class V>
void load_keys(int64_t type, const char* source, int64_t stride, int cells, int64_t k_size, const Keys& keys) {
    const int64_t bytes = type == kF16 ? 2 * k_size : k_size / kQ8Block * kQ8Bytes;
    for (int cell = 0; cell < whole_columns(cells); cell += V::kCells) {
        const char* rows = source + cell * stride;
        if (cell + V::kCells <= cells) {
            transpose_keys<V>(type, rows, stride, k_size, cell, keys);
            continue;
        }
        alignas(64) char last[V::kCells * kLargestRow];  // what follows the last cell are zeros
        for (int i = 0; i < V::kCells; ++i) {
            if (cell + i < cells) {
                std::memcpy(last + i * bytes, rows + i * stride, bytes);
            } else {
                std::memset(last + i * bytes, 0, bytes);
            }
        }
        transpose_keys<V>(type, last, bytes, k_size, cell, keys);
    }
}

template <class V>
void widen_keys(const Keys& keys, int cells, int64_t k_size, float* floats) {
    for (int64_t d = 0; d < k_size; ++d) {
        const int8_t* quants = static_cast<const int8_t*>(keys.start) + d * kTileCells;
        const float* scales = keys.scales + d / kQ8Block * kTileCells;
        for (int cell = 0; cell < whole_columns(cells); cell += V::kWidth) {
            auto x = V::mul(V::load(scales + cell), V::load_int8(quants + cell));
            V::store(floats + d * kTileCells + cell, x);
        }
    }
}

int visible_cells(const uint16_t* mask, int cells) {
    if (mask[cells - 1] != kHidden) return cells;
    unsigned different = 0;
    for (int i = 0; i < cells; ++i) different |= mask[i] ^ kHidden;
    if (different == 0) return 0;
    while (mask[cells - 1] == kHidden) --cells;
    return cells;
}

int64_t last_holes(const uint16_t* mask, int64_t cells) {
    int64_t end = 0;
    for (int64_t tile = (cells - 1) / kTileCells; tile >= 0 && end == 0; --tile) {
        const int64_t first = tile * kTileCells, left = cells - first;
        const int seen = visible_cells(mask + first, static_cast<int>(left < kTileCells ? left : kTileCells));
        end = seen > 0 ? first + seen : 0;
    }
    const int64_t near = end > kTileCells ? end - kTileCells : 0;
    unsigned hidden = 0;
    for (int64_t i = near; i < end; ++i) hidden |= mask[i] == kHidden;
    if (hidden == 0) return -1;
    int64_t hole = -1;
    int after = 0;
    for (int64_t i = end - 1; i > 0 && after <= kTileCells; --i) {
        if (mask[i] != kHidden) {
            ++after;
        } else if (mask[i - 1] != kHidden) {
            hole = i;
        }
    }
    return hole;
}

void advance(Fetcher* fetcher, int64_t bytes) {
    fetcher->now.start += bytes;
    fetcher->now.bytes -= bytes;
    if (fetcher->now.bytes > 0) return;
    fetcher->now = fetcher->then;
    fetcher->then.bytes = 0;
}

// The left side of a product: rows anywhere, or those of a tile's weights.
struct RowPointers {
    const float* const* rows;
    float at(int i, int64_t k) const { return rows[i][k]; }
};

struct WeightRows {
    const float* start;
    float at(int i, int64_t k) const { return start[i * kTileCells + k]; }
};

// The right side, [k][columns]: the keys of a tile, or values.
template <class V>
struct FloatKeys {
    const float* start;
    typename V::reg load(int64_t k, int64_t column) const { return V::load(start + k * kTileCells + column); }
};

template <class V>
struct HalfKeys {
    const uint16_t* start;
    typename V::reg load(int64_t k, int64_t column) const { return V::load_half(start + k * kTileCells + column); }
};

template <class V>
struct QuantKeys {
    const int8_t* start;
    const float* scales;
    typename V::reg load(int64_t k, int64_t column) const {
        auto scale = V::load(scales + k / kQ8Block * kTileCells + column);
        return V::mul(scale, V::load_int8(start + k * kTileCells + column));
    }
};

template <class V>
struct FloatValues {
    const float* start;
    int64_t v_size;
    typename V::reg load(int64_t k, int64_t column) const { return V::load(start + k * v_size + column); }
};

template <class V>
struct HalfValues {
    const char* start;
    int64_t stride;
    typename V::reg load(int64_t k, int64_t column) const {
        return V::load_half(reinterpret_cast<const uint16_t*>(start + k * stride) + column);
    }
};

template <class V>
struct QuantValues {
    const char* start;
    int64_t stride;
    typename V::reg load(int64_t k, int64_t column) const {
        const char* block = start + k * stride + column / kQ8Block * kQ8Bytes;
        const auto* quants = reinterpret_cast<const int8_t*>(block + 2) + column % kQ8Block;
        return V::mul(V::set_half(block), V::load_int8(quants));
    }
};

// c[i][0 .. kVectors * kWidth) = sum over k of a[i][k] * b[k][...] for kRows rows, in the order of k.
template <class V, int kRows, int kVectors, class Left, class Right>
void multiply_block(Left a, Right b, int64_t depth, float* const* c, int64_t column, Fetcher* fetcher) {
    typename V::reg sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) sum[i][j] = V::set(0.0f);
    }
    constexpr int64_t kFetched = 2 * kVectors * V::kWidth;  // as many bytes as a product with float16 reads
    const bool fetches = fetcher->now.bytes > 0;
    const char* ahead = fetches ? fetcher->now.start : reinterpret_cast<const char*>(c[0]);
    for (int64_t k = 0; k < depth; ++k) {
        __builtin_prefetch(ahead, 0, 2);
        if constexpr (kFetched > 64) __builtin_prefetch(ahead + 64, 0, 2);
        ahead += fetches ? kFetched : 0;
        typename V::reg right[kVectors];
        for (int j = 0; j < kVectors; ++j) {
            right[j] = b.load(k, column + j * V::kWidth);
            if constexpr (kRows > 2) V::keep(&right[j]);
        }
        for (int i = 0; i < kRows; ++i) {
            auto left = V::set(a.at(i, k));
            for (int j = 0; j < kVectors; ++j) sum[i][j] = V::fma(left, right[j], sum[i][j]);
        }
    }
    if (fetches) advance(fetcher, depth * kFetched);
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) V::store(c[i] + column + j * V::kWidth, sum[i][j]);
    }
}

// The same over the first `width` columns, a multiple of 16.
template <class V, int kRows, class Left, class Right>
void multiply_rows(Left a, Right b, int64_t width, int64_t depth, float* const* c, Fetcher* fetcher) {
    constexpr int kStep = V::kVectors * V::kWidth;
    int64_t column = 0;
    for (; column + kStep <= width; column += kStep) {
        multiply_block<V, kRows, V::kVectors>(a, b, depth, c, column, fetcher);
    }
    if constexpr (kStep > 16) {
        for (; column < width; column += 16) {
            multiply_block<V, kRows, 16 / V::kWidth>(a, b, depth, c, column, fetcher);
        }
    }
}

template <class V, class Left, class Right>
void multiply(int n, Left a, Right b, int64_t width, int64_t depth, float* const* c, Fetcher* fetcher) {
    switch (n) {
        case 1: return multiply_rows<V, 1>(a, b, width, depth, c, fetcher);
        case 2: return multiply_rows<V, 2>(a, b, width, depth, c, fetcher);
        case 3: return multiply_rows<V, 3>(a, b, width, depth, c, fetcher);
        case 4: return multiply_rows<V, 4>(a, b, width, depth, c, fetcher);
        case 5: return multiply_rows<V, 5>(a, b, width, depth, c, fetcher);
        default: return multiply_rows<V, 6>(a, b, width, depth, c, fetcher);
    }
}

// Turn a row of dot products with `cells` cells into e^(logit - maximum), and set the row's state.
template <class V>
RowState softmax(float* row, int cells, const uint16_t* mask, float slope, Logits logits) {
    const int columns = whole_columns(cells);
    uint16_t tail[kTileCells];
    if (cells < columns) {  // cells that do not exist are masked
        for (int i = 0; i < columns; ++i) tail[i] = i >= cells ? kHidden : mask != nullptr ? mask[i] : 0;
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
    // Sums of every sixteenth weight, whatever the width of a vector, so that all instruction sets agree.
    constexpr int kSums = 16 / V::kWidth;
    typename V::reg sums[kSums];
    for (int j = 0; j < kSums; ++j) sums[j] = V::set(0.0f);
    for (int i = 0; i < columns; i += 16) {
        for (int j = 0; j < kSums; ++j) {
            float* at = row + i + j * V::kWidth;
            auto p = exponential<V>(V::add(V::load(at), V::set(-state.maximum)));
            V::store(at, p);
            sums[j] = V::add(sums[j], p);
        }
    }
    state.sum = V::fold_sums(sums);
    return state;
}

template <class V>
void multiply_keys(int n, const float* const* q, const Keys& keys, int64_t k_size, int columns, float* const* rows,
                   Fetcher* fetcher) {
    RowPointers left = {q};
    if (keys.type == kF16) {
        HalfKeys<V> right = {static_cast<const uint16_t*>(keys.start)};
        multiply<V>(n, left, right, columns, k_size, rows, fetcher);
    } else if (keys.type == kQ8_0) {
        QuantKeys<V> right = {static_cast<const int8_t*>(keys.start), keys.scales};
        multiply<V>(n, left, right, columns, k_size, rows, fetcher);
    } else {
        FloatKeys<V> right = {static_cast<const float*>(keys.start)};
        multiply<V>(n, left, right, columns, k_size, rows, fetcher);
    }
}

template <class V>
void multiply_values(int n, WeightRows weights, const Values& values, int64_t v_size, int cells, float* const* value,
                     Fetcher* fetcher) {
    const auto* start = static_cast<const char*>(values.start);
    if (values.type == kF16) {
        multiply<V>(n, weights, HalfValues<V>{start, values.stride}, v_size, cells, value, fetcher);
    } else if (values.type == kQ8_0) {
        multiply<V>(n, weights, QuantValues<V>{start, values.stride}, v_size, cells, value, fetcher);
    } else {
        FloatValues<V> right = {static_cast<const float*>(values.start), v_size};
        multiply<V>(n, weights, right, v_size, cells, value, fetcher);
    }
}

// `kWhole`: with all cells of the tile, whose number compilers then know (5% faster).
template <class V, bool kWhole>
void attend_cells(int n, const float* const* q, const Keys& keys, const Values& values, int64_t k_size, int64_t v_size,
                  int cells, const uint16_t* const* mask, const float* slope, Logits logits, float* const* value,
                  RowState* const* state, Fetcher* fetcher) {
    if constexpr (kWhole) cells = kTileCells;
    alignas(64) float weights[kRowGroup][kTileCells];
    float* rows[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) rows[i] = weights[i];
    multiply_keys<V>(n, q, keys, k_size, whole_columns(cells), rows, fetcher);
    for (int i = 0; i < n; ++i) *state[i] = softmax<V>(rows[i], cells, mask[i], slope[i], logits);
    multiply_values<V>(n, WeightRows{weights[0]}, values, v_size, cells, value, fetcher);
}

template <class V>
void attend(int n, const float* const* q, const Keys& keys, const Values& values, int64_t k_size, int64_t v_size,
            int cells, const uint16_t* const* mask, const float* slope, Logits logits, float* const* value,
            RowState* const* state, Fetcher* fetcher) {
    const auto chosen = cells == kTileCells ? attend_cells<V, true> : attend_cells<V, false>;
    chosen(n, q, keys, values, k_size, v_size, cells, mask, slope, logits, value, state, fetcher);
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
    return {load_keys<V>, widen_keys<V>, widen_values<V>, visible_cells, last_holes, attend<V>, fold<V>, finish<V>};
}

}  // namespace
}  // namespace specx
