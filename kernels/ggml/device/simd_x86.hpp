// What the x86 kernels share in 128-bit registers: the ends of the quantization of a block.
#pragma once

#include <immintrin.h>

#include "table.hpp"

namespace specx {
namespace {

SPECX_INLINE int32_t largest_of(__m128i v) {
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1));
    return _mm_cvtsi128_si32(v);
}

// The sum of 16 signed bytes, which the instruction wants unsigned.
SPECX_INLINE int32_t sum_of(__m128i q) {
    const __m128i pairs = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
    return _mm_cvtsi128_si32(pairs) + _mm_extract_epi32(pairs, 2) - 16 * 128;
}

SPECX_INLINE void store_quants(__m128i first, __m128i second, int8_t* q, int32_t (&sums)[2]) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), first);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), second);
    sums[0] = sum_of(first);
    sums[1] = sum_of(second);
}

}  // namespace
}  // namespace specx
