// The table of all kernels of one instruction set; see tile.hpp.
#pragma once

#include "quantize.hpp"

namespace specx {
namespace {

// The zero of the quants as dot products see them.
template <class Simd>
SPECX_INLINE constexpr int zero_of(const Format& f) {
    return f.is_signed && Simd::kOffsetSigned ? 128 : f.zero;
}

template <class Simd, int format, int... n>
void fill_tiles(Kernels& kernels, std::integer_sequence<int, n...>) {
    ((kernels.tile[format][n] = multiply_tile<Simd, format, n + 1>), ...);
}

template <class Simd, int max_tile, int... format>
Kernels make_kernels(std::integer_sequence<int, format...>) {
    Kernels kernels = {};
    kernels.max_tile = max_tile;
    (fill_tiles<Simd, format>(kernels, std::make_integer_sequence<int, max_tile>()), ...);
    ((kernels.quantize[format] = quantize_tile<Simd, format, zero_of<Simd>(*kFormats[format])>), ...);
    return kernels;
}

// Tiles of 1 to `largest` tokens for every format.
template <class Simd, int largest>
const Kernels* all_kernels() {
    constexpr int max_tile = largest < kMaxTile ? largest : kMaxTile;
    static const Kernels kernels = make_kernels<Simd, max_tile>(std::make_integer_sequence<int, kFormatCount>());
    return &kernels;
}

}  // namespace
}  // namespace specx
