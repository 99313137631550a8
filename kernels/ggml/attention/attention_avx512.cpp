// Attention with AVX-512 (F, BW, DQ, VL).
#include "attention_tile.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>

#include "attention_kernels.hpp"

namespace specx {
namespace {

struct Avx512 {
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
    static float reduce_add(reg a) { return _mm512_reduce_add_ps(a); }
    static float reduce_max(reg a) { return _mm512_reduce_max_ps(a); }
    static reg load_half(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static reg load_int8(const int8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }

    // Lane j of the vector made of rows i, i + 4, i + 8 and i + 12 is a row of the 4 x 4 block that becomes
    // lane j of the result, so transposing within lanes is all that is left.
    static reg gather(const float* rows, int64_t stride) {
        reg a = _mm512_castps128_ps512(_mm_loadu_ps(rows));
        a = _mm512_mask_broadcast_f32x4(a, 0x00F0, _mm_loadu_ps(rows + 4 * stride));
        a = _mm512_mask_broadcast_f32x4(a, 0x0F00, _mm_loadu_ps(rows + 8 * stride));
        return _mm512_mask_broadcast_f32x4(a, 0xF000, _mm_loadu_ps(rows + 12 * stride));
    }
    static void transpose(const float* rows, int64_t stride, float* out, int64_t out_stride) {
        reg a = gather(rows, stride), b = gather(rows + stride, stride);
        reg c = gather(rows + 2 * stride, stride), d = gather(rows + 3 * stride, stride);
        __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        store(out, _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)));
        store(out + out_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)));
        store(out + 2 * out_stride, _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)));
        store(out + 3 * out_stride, _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)));
    }
};

constexpr AttentionKernels kKernels = kernels_of<Avx512>();

}  // namespace

const AttentionKernels* attention_kernels_avx512() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const AttentionKernels* attention_kernels_avx512() { return nullptr; }
}  // namespace specx

#endif
