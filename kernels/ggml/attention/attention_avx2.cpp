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
    static constexpr int kCells = 16;
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
    static reg load_int8(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(half)));
    }

    // 16 bytes each of two rows side by side, for interleaving within these lanes.
    static __m256i gather(const char* rows, int64_t stride) {
        auto load = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * stride)); };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(load(0)), load(1), 1);
    }
    // As in attention_avx512.cpp.
    static void transpose_halves(const char* rows, int64_t stride, uint16_t* out, int64_t to) {
        __m256i line[8], pair[8], four[8];
        for (int i = 0; i < 8; ++i) line[i] = gather(rows + i * stride, 8 * stride);
        for (int i = 0; i < 8; i += 2) {
            pair[i] = _mm256_unpacklo_epi16(line[i], line[i + 1]);
            pair[i + 1] = _mm256_unpackhi_epi16(line[i], line[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            for (int j = 0; j < 2; ++j) {
                four[i + 2 * j] = _mm256_unpacklo_epi32(pair[i + j], pair[i + 2 + j]);
                four[i + 2 * j + 1] = _mm256_unpackhi_epi32(pair[i + j], pair[i + 2 + j]);
            }
        }
        auto store = [&](int i, __m256i column) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * to), column);
        };
        for (int i = 0; i < 4; ++i) {
            store(2 * i, _mm256_unpacklo_epi64(four[i], four[i + 4]));
            store(2 * i + 1, _mm256_unpackhi_epi64(four[i], four[i + 4]));
        }
    }
    static void store_columns(__m256i four, int8_t* out, int64_t stride) {
        four = _mm256_permutevar8x32_epi32(four, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        __m128i low = _mm256_castsi256_si128(four), high = _mm256_extracti128_si256(four, 1);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), low);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + stride), _mm_unpackhi_epi64(low, low));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 2 * stride), high);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 3 * stride), _mm_unpackhi_epi64(high, high));
    }
    static void transpose_bytes(const char* rows, int64_t stride, int8_t* out, int64_t to) {
        for (int half = 0; half < kCells; half += 8) {
            __m256i line[4];
            for (int i = 0; i < 4; ++i) line[i] = gather(rows + (half + i) * stride, 4 * stride);
            __m256i ab = _mm256_unpacklo_epi8(line[0], line[1]), cd = _mm256_unpacklo_epi8(line[2], line[3]);
            store_columns(_mm256_unpacklo_epi16(ab, cd), out + half, to);
            store_columns(_mm256_unpackhi_epi16(ab, cd), out + half + 4 * to, to);
            ab = _mm256_unpackhi_epi8(line[0], line[1]), cd = _mm256_unpackhi_epi8(line[2], line[3]);
            store_columns(_mm256_unpacklo_epi16(ab, cd), out + half + 8 * to, to);
            store_columns(_mm256_unpackhi_epi16(ab, cd), out + half + 12 * to, to);
        }
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
