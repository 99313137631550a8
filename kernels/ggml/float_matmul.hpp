// Multiplication with a small matrix of floats, which the routers of experts are: their results choose the experts, so
// they too must not depend on how many tokens are multiplied at once.
//
//   out[t][row] = sum over k of w[row][k] * x[t][k]
//
// A result is bit-identical whatever the number of tokens and threads and on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace specx {

// Rows are `..._stride` bytes apart. Part ith of nth; all parts must be done, in any order or at once.
void multiply_floats(Isa isa, int64_t k, int64_t rows, int64_t n, const void* w, size_t w_stride, const void* x,
                     size_t x_stride, void* out, size_t out_stride, int ith, int nth);

}  // namespace specx
