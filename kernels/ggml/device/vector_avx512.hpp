// Vectors of floats with AVX-512 (F, BW, DQ, VL). What they have: vector_math.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace specx {
namespace {

struct VectorAvx512 {
    using reg = __m512;
    static constexpr int kWidth = 16;
    static constexpr int kVectors = 4;
    static void keep(reg* a) { asm("" : "+v"(*a)); }
    static reg load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, reg a) { _mm512_storeu_ps(p, a); }
    static reg set(float a) { return _mm512_set1_ps(a); }
    static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
    static reg div(reg a, reg b) { return _mm512_div_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
    static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }
    static reg min(reg a, reg b) { return _mm512_min_ps(a, b); }
    static reg select_below(reg a, reg b, reg x, reg y) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
    }
    static reg round_even(reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static reg power_of_two(reg n) {
        __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
    }
    static reg swap_pairs(reg a) { return _mm512_permute_ps(a, 0xB1); }
    static float fold_sums(const reg* sums) {
        __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums[0]), _mm512_extractf32x8_ps(sums[0], 1));
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static float reduce_max(reg a) { return _mm512_reduce_max_ps(a); }
    static reg load_half(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static void store_half(uint16_t* p, reg a) {
        const __m256i halves = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
    }
    static reg load_int8(const int8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(half)));
    }
};

}  // namespace
}  // namespace specx
