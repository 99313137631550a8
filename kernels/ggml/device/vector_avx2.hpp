// Vectors of floats with AVX2, FMA and F16C. What they have: vector_math.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace specx {
namespace {

struct VectorAvx2 {
    using reg = __m256;
    static constexpr int kWidth = 8;
    static constexpr int kVectors = 2;
    static void keep(reg* a) { asm("" : "+x"(*a)); }
    static reg load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, reg a) { _mm256_storeu_ps(p, a); }
    static reg set(float a) { return _mm256_set1_ps(a); }
    static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
    static reg mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
    static reg div(reg a, reg b) { return _mm256_div_ps(a, b); }
    static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
    static reg max(reg a, reg b) { return _mm256_max_ps(a, b); }
    static reg min(reg a, reg b) { return _mm256_min_ps(a, b); }
    static reg select_below(reg a, reg b, reg x, reg y) {
        return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    static reg round_even(reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static reg power_of_two(reg n) {
        __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    }
    static reg swap_pairs(reg a) { return _mm256_permute_ps(a, 0xB1); }
    static float fold_sums(const reg* sums) {
        reg eight = _mm256_add_ps(sums[0], sums[1]);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static float reduce_max(reg a) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
    static reg load_half(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void store_half(uint16_t* p, reg a) {
        const __m128i halves = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
    }
    static reg load_int8(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(half)));
    }
};

}  // namespace
}  // namespace specx
