// What a file of kernels for one instruction set exports, and the order of the quantized activations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace specx {

// Activations are kept tile by tile (the tokens one call of a kernel multiplies with), in a tile block by block of
// 32, so that a kernel reads them front to back. A block of a tile of n tokens is
//
//   int8 x[n][32];  float d[n];  int32 or float extra[n] (Q6_K: [2][n])
//
// with x = round(activation / d). `extra` is kFloatBits - zero * sum(x), where a dot product with the quants as they
// are stored starts from (one for each 16 weights in Q6_K), or d * sum(x) for types with a minimum.
SPECX_INLINE constexpr size_t activation_bytes(const Format& f) {
    return static_cast<size_t>(kBlock) + 4 + (f.scale == Scale::d_int8 ? 8 : 4);
}

// 1.5 * 2^23, where neighbouring floats are 1 apart: kFloatBits + i, for |i| < 2^22, are the bits of the float
// kFloat + i. A dot product that starts from kFloatBits (it stays below 2^20) is a float without being converted.
constexpr int kFloatBits = 0x4b400000;
constexpr float kFloat = 12582912.0f;

// The results of one group of 16 rows for one tile: out[t * stride + row], stride in floats.
using TileKernel = void (*)(const uint8_t* group, int64_t k, const uint8_t* activations, float* out, size_t stride);

// Quantizes blocks [first, last) of the n rows of a tile; `x` is the first row.
using QuantizeKernel = void (*)(const uint8_t* x, size_t row_stride_bytes, int n, int64_t first, int64_t last,
                                uint8_t* tile);

// Of the variant with the largest tiles. Builds with sanitizers, which take long, have smaller ones.
#ifdef SPECX_MAX_TILE
constexpr int kMaxTile = SPECX_MAX_TILE;
#else
constexpr int kMaxTile = 16;
#endif

struct Kernels {
    int max_tile;  // <= kMaxTile
    TileKernel tile[kFormatCount][kMaxTile];  // [format][n - 1], n <= max_tile
    QuantizeKernel quantize[kFormatCount];
    void (*leave)();  // what a thread calls after its last tile, if not null
};

// Null where the target does not have the instruction set.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx512_vnni_kernels();
const Kernels* neon_dotprod_kernels();
const Kernels* neon_i8mm_kernels();
const Kernels* amx_int8_kernels();

// The one of the above for `isa`.
const Kernels* kernels_of(Isa isa);

}  // namespace specx
