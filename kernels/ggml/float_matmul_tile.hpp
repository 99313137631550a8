// The inner loop of float_matmul.hpp, included by one file for each instruction set.
//
// Sixteen partial sums, of the products at k, k + 16, ..., are added up in pairs at the end; the size of the registers
// makes no difference to that. In an anonymous namespace: see tile.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace specx {

// Results of one row of weights for n tokens (n <= tokens): out[t * out_stride] and x[t * x_stride], in bytes.
using FloatKernel = void (*)(int64_t k, const float* w, int n, const char* x, size_t x_stride, char* out,
                             size_t out_stride);

struct FloatKernels {
    int tokens;
    FloatKernel multiply;
};

// Null where the target does not have the instruction set.
const FloatKernels* float_kernels_avx2();
const FloatKernels* float_kernels_avx512();

namespace {

#if defined(__clang__)
#define SPECX_UNROLL_FLOATS _Pragma("clang loop unroll(full)")
#else
#define SPECX_UNROLL_FLOATS _Pragma("GCC unroll 16")
#endif

constexpr int kLanes = 16;

template <int bytes>
struct FloatVector {
    typedef float Type __attribute__((vector_size(bytes)));
};

template <int bytes, int n>
void multiply_row(int64_t k, const float* w, const char* x, size_t x_stride, char* out, size_t out_stride) {
    using Vector = typename FloatVector<bytes>::Type;
    constexpr int width = bytes / 4, vectors = kLanes / width;
    Vector sum[n][vectors] = {};
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) {
        SPECX_UNROLL_FLOATS
        for (int v = 0; v < vectors; ++v) {
            Vector weights;
            std::memcpy(&weights, w + i + v * width, bytes);
            SPECX_UNROLL_FLOATS
            for (int t = 0; t < n; ++t) {
                Vector activations;
                std::memcpy(&activations, x + t * x_stride + (i + v * width) * 4, bytes);
                sum[t][v] += weights * activations;
            }
        }
    }
    for (int t = 0; t < n; ++t) {
        float lane[kLanes];
        std::memcpy(lane, sum[t], sizeof lane);
        for (int64_t j = i; j < k; ++j) {
            float activation;
            std::memcpy(&activation, x + t * x_stride + j * 4, 4);
            lane[j - i] += w[j] * activation;
        }
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
        std::memcpy(out + t * out_stride, lane, 4);
    }
}

template <int bytes, int tokens>
void multiply_up_to(int64_t k, const float* w, int n, const char* x, size_t x_stride, char* out, size_t out_stride) {
    if constexpr (tokens > 1) {
        if (n < tokens) return multiply_up_to<bytes, tokens - 1>(k, w, n, x, x_stride, out, out_stride);
    }
    multiply_row<bytes, tokens>(k, w, x, x_stride, out, out_stride);
}

// `bytes` of a register, and as many tokens as leave the sums in registers.
template <int bytes, int tokens>
const FloatKernels* float_kernels() {
    static const FloatKernels kernels = {tokens, multiply_up_to<bytes, tokens>};
    return &kernels;
}

}  // namespace
}  // namespace specx
