// Attention with AVX2, FMA and F16C.
#include "attention_tile.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "attention_kernels.hpp"
#include "vector_avx2.hpp"

namespace specx {
namespace {

struct Avx2 : VectorAvx2 {
    static constexpr int kCells = 16;

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
