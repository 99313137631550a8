// AVX-512 for float_matmul.hpp.
#include "float_matmul_tile.hpp"

#ifdef __AVX512F__

#include <immintrin.h>

namespace specx {
namespace {

struct Avx512 {
    using reg = __m512;
    static constexpr int kWidth = 16, kRows = 4, kTokens = 6;
    static reg zero() { return _mm512_setzero_ps(); }
    static reg load(const float* p) { return _mm512_loadu_ps(p); }
    static reg load(const Half* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static reg load(const BFloat* p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
    static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
    static float sum(reg a) {
        const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static void store(float* p, reg a) { _mm512_storeu_ps(p, a); }
};

}  // namespace
const FloatKernels* float_kernels_avx512() { return float_kernels<Avx512>(); }
}  // namespace specx

#else

namespace specx {
const FloatKernels* float_kernels_avx512() { return nullptr; }
}  // namespace specx

#endif
