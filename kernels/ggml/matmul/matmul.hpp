// Multiplication of quantized weights with a few tokens: out[t][row] = sum over k of w[row][k] * x[t][k].
//
// Weights are packed once into groups of 16 interleaved rows (layout: formats.hpp). Activations are
// quantized to 8 bits in blocks of 32. The result of a row does not depend on how many tokens are multiplied
// with it, on the number of threads or on the instruction set: it is bit-identical in all of them.
//
// Types are ggml's numbers (ggml_type); shapes are ggml's: `k` (ne[0]) weights a row, `rows` (ne[1]) rows.
// Nothing here allocates, throws, or keeps state; all pointers are the caller's. `packed` and `scratch` must
// be aligned to kAlignment bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace specx {

constexpr size_t kAlignment = 64;
constexpr int64_t kGroupRows = 16;

// Whether weights of this type and shape can be packed and multiplied. Any number of rows; k a multiple of
// the type's block (32 or 256). False for an unknown type.
bool matmul_supported(int type, int64_t k, int64_t rows);

// Bytes of the packed weights: the source's size, rows rounded up to a multiple of 16, plus less than 64 bytes
// per 16 rows. Packed weights have the same layout under every instruction set.
size_t packed_size(int type, int64_t k, int64_t rows);

// Pack rows [first_row, first_row + n_rows) of ggml's layout. `src` points to row `first_row`, `dst` to the
// start of the whole packed matrix. first_row is a multiple of 16; so is n_rows, unless the range ends at
// `rows`. Ranges may be packed by several threads at once.
void pack(int type, int64_t k, int64_t rows, const void* src, void* dst, int64_t first_row, int64_t n_rows);

// The inverse, bit-exact: `src` is the whole packed matrix, `dst` receives row `first_row` first.
void unpack(int type, int64_t k, int64_t rows, const void* src, void* dst, int64_t first_row, int64_t n_rows);

// Bytes of scratch memory for the quantized activations of n tokens.
size_t scratch_size(int type, int64_t k, int64_t n);

// Quantize n rows of k floats, `row_stride_bytes` apart, into `scratch`. Part ith of nth (0 <= ith < nth): all
// parts must be done, in any order or at once, before multiply() reads the scratch memory. A block with a
// NaN or infinite entry makes the results of its token NaN.
void quantize_rows(int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes, void* scratch,
                   int ith, int nth);

// Blocks [first_block, last_block) of 32 of all n rows.
void quantize_blocks(int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes, void* scratch,
                     int64_t first_block, int64_t last_block);

// What quantize_rows() would make of n rows, from those rows each quantized alone (n = 1).
void join_rows(int type, int64_t k, int64_t n, const void* const* rows, void* scratch);

// out[t * out_stride_bytes / 4 + row] for all t < n and row < rows; part ith of nth covers a contiguous range of
// the rows. nth need not be the number of threads: more parts than threads can be handed out dynamically.
void multiply(int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch,
              float* out, size_t out_stride_bytes, int ith, int nth);

// Groups [first_group, last_group) of 16 rows.
void multiply_groups(int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch, float* out,
                     size_t out_stride_bytes, int64_t first_group, int64_t last_group);

// The same with a given instruction set, which must be available; for the tests. Quantize and multiply with
// the same one: the order of the activations in the scratch memory depends on it.
void quantize_rows(Isa isa, int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes,
                   void* scratch, int ith, int nth);
void join_rows(Isa isa, int type, int64_t k, int64_t n, const void* const* rows, void* scratch);
void multiply(Isa isa, int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch,
              float* out, size_t out_stride_bytes, int ith, int nth);

}  // namespace specx
