// The inner loop of float_matmul.hpp, included by one file for each instruction set.
//
// Sixteen partial sums, of the products at k, k + 16, ..., each by fused multiply-adds, are added up in pairs at the
// end; the size of the registers makes no difference to that. In an anonymous namespace: see tile.hpp.
//
// A `Simd` has registers `reg` of kWidth floats, load() of kWidth weights of each type, add(), fma(), store(), sum() of
// a register's lanes in that order, and the number of rows and tokens whose sums fit in its registers.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace specx {

struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

// Results of `rows` rows of weights for n tokens (as many as the kernels have, at most). Strides are in bytes.
using FloatKernel = void (*)(int64_t k, int rows, const char* w, size_t w_stride, int n, const char* x, size_t x_stride,
                             char* out, size_t out_stride);

struct FloatKernels {
    int rows, tokens;
    FloatKernel f32, f16, bf16;
};

// Null where the target does not have the instruction set.
const FloatKernels* float_kernels_avx2();
const FloatKernels* float_kernels_avx512();
const FloatKernels* float_kernels_neon();
const FloatKernels* float_kernels_generic();

namespace {

#if defined(__clang__)
#define SPECX_UNROLL_FLOATS _Pragma("clang loop unroll(full)")
#else
#define SPECX_UNROLL_FLOATS _Pragma("GCC unroll 16")
#endif

constexpr int kFloatLanes = 16;

inline float to_float(float w) { return w; }

inline float to_float(BFloat w) {
    const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float to_float(Half w) {
    const uint32_t rest = w.bits & 0x7FFFu;
    uint32_t bits = rest << 13;
    float value;
    if (rest >= 0x7C00) {  // infinity or NaN
        bits |= 0x7F800000u;
        std::memcpy(&value, &bits, sizeof value);
    } else {  // the exponent's bias differs by 112; this multiplication is exact, for subnormals too
        std::memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
    }
    return (w.bits & 0x8000u) != 0 ? -value : value;
}

// Lanes of the sixteen sums of one row and one token, after the products behind the last whole group of sixteen.
template <class Simd, class Weight>
void add_rest(typename Simd::reg (&sum)[kFloatLanes / Simd::kWidth], int64_t from, int64_t k, const Weight* w,
              const float* x) {
    float lane[kFloatLanes];
    for (int part = 0; part < kFloatLanes / Simd::kWidth; ++part) Simd::store(lane + part * Simd::kWidth, sum[part]);
    for (int64_t i = from; i < k; ++i) lane[i - from] = std::fmaf(to_float(w[i]), x[i], lane[i - from]);
    for (int part = 0; part < kFloatLanes / Simd::kWidth; ++part)
        sum[part] = Simd::load(lane + part * Simd::kWidth);
}

template <class Simd>
float total(typename Simd::reg (&sum)[kFloatLanes / Simd::kWidth]) {
    SPECX_UNROLL_FLOATS
    for (int half = kFloatLanes / Simd::kWidth / 2; half > 0; half /= 2)
        for (int part = 0; part < half; ++part) sum[part] = Simd::add(sum[part], sum[part + half]);
    return Simd::sum(sum[0]);
}

template <class Simd, class Weight, int rows, int n>
void multiply_block(int64_t k, const char* w, size_t w_stride, const char* x, size_t x_stride, char* out,
                    size_t out_stride) {
    using reg = typename Simd::reg;
    constexpr int width = Simd::kWidth, parts = kFloatLanes / width;
    auto weights = [&](int row) { return reinterpret_cast<const Weight*>(w + row * w_stride); };
    auto activations = [&](int t) { return reinterpret_cast<const float*>(x + t * x_stride); };
    reg sum[rows][n][parts];
    for (auto& row : sum)
        for (auto& token : row)
            for (reg& part : token) part = Simd::zero();
    int64_t i = 0;
    for (; i + kFloatLanes <= k; i += kFloatLanes) {
        SPECX_UNROLL_FLOATS
        for (int part = 0; part < parts; ++part) {
            reg weight[rows];
            SPECX_UNROLL_FLOATS
            for (int row = 0; row < rows; ++row) weight[row] = Simd::load(weights(row) + i + part * width);
            SPECX_UNROLL_FLOATS
            for (int t = 0; t < n; ++t) {
                const reg activation = Simd::load(activations(t) + i + part * width);
                SPECX_UNROLL_FLOATS
                for (int row = 0; row < rows; ++row)
                    sum[row][t][part] = Simd::fma(weight[row], activation, sum[row][t][part]);
            }
        }
    }
    SPECX_UNROLL_FLOATS
    for (int row = 0; row < rows; ++row)
        SPECX_UNROLL_FLOATS
        for (int t = 0; t < n; ++t) {
            if (i < k) add_rest<Simd>(sum[row][t], i, k, weights(row), activations(t));
            const float result = total<Simd>(sum[row][t]);
            std::memcpy(out + t * out_stride + row * sizeof(float), &result, sizeof result);
        }
}

template <class Simd, class Weight, int rows, int n>
void multiply_up_to(int64_t k, const char* w, size_t w_stride, int tokens, const char* x, size_t x_stride, char* out,
                    size_t out_stride) {
    if constexpr (n > 1) {
        if (tokens < n)
            return multiply_up_to<Simd, Weight, rows, n - 1>(k, w, w_stride, tokens, x, x_stride, out, out_stride);
    }
    multiply_block<Simd, Weight, rows, n>(k, w, w_stride, x, x_stride, out, out_stride);
}

template <class Simd, class Weight>
void multiply_rows(int64_t k, int rows, const char* w, size_t w_stride, int n, const char* x, size_t x_stride,
                   char* out, size_t out_stride) {
    if (rows == Simd::kRows)
        return multiply_up_to<Simd, Weight, Simd::kRows, Simd::kTokens>(k, w, w_stride, n, x, x_stride, out,
                                                                        out_stride);
    for (int row = 0; row < rows; ++row)
        multiply_up_to<Simd, Weight, 1, Simd::kTokens>(k, w + row * w_stride, w_stride, n, x, x_stride,
                                                       out + row * sizeof(float), out_stride);
}

template <class Simd>
const FloatKernels* float_kernels() {
    static const FloatKernels kernels = {Simd::kRows, Simd::kTokens, multiply_rows<Simd, float>,
                                         multiply_rows<Simd, Half>, multiply_rows<Simd, BFloat>};
    return &kernels;
}

}  // namespace
}  // namespace specx
