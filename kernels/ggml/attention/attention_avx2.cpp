// Attention with AVX2, FMA and F16C.
#include "attention_tile.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "attention_kernels.hpp"

namespace specx {
namespace {

struct Avx2 {
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
    static float reduce_add(reg a) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
    static float reduce_max(reg a) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
    static reg load_half(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static reg load_int8(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }

    // As in attention_avx512.cpp: rows i and i + 4 in the two lanes leave only transposing within lanes.
    static reg gather(const float* rows, int64_t stride) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows)), _mm_loadu_ps(rows + 4 * stride), 1);
    }
    static void transpose(const float* rows, int64_t stride, float* out, int64_t out_stride) {
        reg a = gather(rows, stride), b = gather(rows + stride, stride);
        reg c = gather(rows + 2 * stride, stride), d = gather(rows + 3 * stride, stride);
        __m256d ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
        __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
        __m256d cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
        __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
        store(out, _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low)));
        store(out + out_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low)));
        store(out + 2 * out_stride, _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high)));
        store(out + 3 * out_stride, _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high)));
    }
};

constexpr AttentionKernels kKernels = kernels_of<Avx2>();

}  // namespace

const AttentionKernels* attention_kernels_avx2() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const AttentionKernels* attention_kernels_avx2() { return nullptr; }
}  // namespace specx

#endif
