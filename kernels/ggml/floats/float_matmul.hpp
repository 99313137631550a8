// Multiplication with matrices of floats: output heads and models that are not quantized (F16, BF16, F32), and the
// routers of experts, whose results choose the experts.
//
//   out[t][row] = sum over k of w[row][k] * x[t][k]
//
// Weights stay as they are in the file; activations are not rounded. A result is bit-identical whatever the number of
// tokens and threads and on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace specx {

// Whether weights of this ggml_type can be multiplied: F32, F16 or BF16.
bool float_matmul_supported(int type);

// Rows are `..._stride` bytes apart. Part ith of nth; all parts must be done, in any order or at once.
void multiply_floats(Isa isa, int type, int64_t k, int64_t rows, int64_t n, const void* w, size_t w_stride,
                     const void* x, size_t x_stride, void* out, size_t out_stride, int ith, int nth);

}  // namespace specx
