// Quantization of activations to 8 bits. Included, like tile.hpp, by one file for each instruction set, which supplies
//
//   Simd::quantize(x, q, sums)   32 floats to round(x / d), ties to even; the sums of q's halves; returns d
//
// with d and 1 / d as BlockScale gives them, and all zeros where it is not usable.
#pragma once

#include <cstdint>
#include <cstring>

#include "tile.hpp"

namespace specx {
namespace {

// The scale of a block, and its reciprocal, from the largest of the absolute values, given by its bits: those are
// ordered as the values are, with NaN above infinity. Below 2^-119 a block counts as zero (the reciprocal would
// overflow, and NaN come about); if an entry is not finite the scale is NaN.
struct BlockScale {
    float d, inverse;
    bool usable;

    SPECX_INLINE explicit BlockScale(int32_t largest_bits) {
        constexpr int32_t smallest = 0x04000000, infinity = 0x7f800000;
        const float largest = load_as<float>(&largest_bits);
        usable = largest_bits >= smallest && largest_bits < infinity;
        inverse = usable ? 127.0f / largest : 0.0f;
        d = usable ? largest / 127.0f : largest_bits < smallest ? 0.0f : __builtin_nanf("");
    }
};

// `zero` is that of the dot products over the quants as the kernel uses them (kernels.hpp).
template <class Simd, int format, int zero>
void quantize_tile(const uint8_t* x, size_t row_stride_bytes, int n, int64_t first, int64_t last, uint8_t* tile) {
    constexpr Format f = *kFormats[format];
    for (int64_t b = first; b < last; ++b) {
        uint8_t* block = tile + b * n * activation_bytes(f);
        uint8_t* scales = block + n * kBlock;
        for (int t = 0; t < n; ++t) {
            int32_t sums[2];
            const float* row = reinterpret_cast<const float*>(x + t * row_stride_bytes);
            const float d = Simd::quantize(row + b * kBlock, reinterpret_cast<int8_t*>(block + t * kBlock), sums);
            std::memcpy(scales + 4 * t, &d, 4);
            uint8_t* extra = scales + 4 * (n + t);
            if constexpr (f.scale == Scale::d_int8) {
                const int32_t starts[2] = {kFloatBits - zero * sums[0], kFloatBits - zero * sums[1]};
                std::memcpy(extra, &starts[0], 4);
                std::memcpy(extra + 4 * n, &starts[1], 4);
            } else if constexpr (f.has_minimum()) {
                const float sum = d * static_cast<float>(sums[0] + sums[1]);
                std::memcpy(extra, &sum, 4);
            } else {
                const int32_t start = kFloatBits - zero * (sums[0] + sums[1]);
                std::memcpy(extra, &start, 4);
            }
        }
    }
}

}  // namespace
}  // namespace specx
