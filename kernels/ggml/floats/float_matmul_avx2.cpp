// AVX2 for float_matmul.hpp.
#include "float_matmul_tile.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace specx {
namespace {

struct Avx2 {
    using reg = __m256;
    static constexpr int kWidth = 8, kRows = 2, kTokens = 3;
    static reg zero() { return _mm256_setzero_ps(); }
    static reg load(const float* p) { return _mm256_loadu_ps(p); }
    static reg load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static reg load(const BFloat* p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
    static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
    static float sum(reg a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static void store(float* p, reg a) { _mm256_storeu_ps(p, a); }
};

}  // namespace
const FloatKernels* float_kernels_avx2() { return float_kernels<Avx2>(); }
}  // namespace specx

#else

namespace specx {
const FloatKernels* float_kernels_avx2() { return nullptr; }
}  // namespace specx

#endif
