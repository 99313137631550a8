// Attention with AVX-512 (F, BW, DQ, VL).
#include "attention_tile.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "attention_kernels.hpp"
#include "vector_avx512.hpp"

namespace specx {
namespace {

struct Avx512 : VectorAvx512 {
    static constexpr int kCells = 32;

    // 16 bytes each of four rows side by side, for interleaving within these lanes.
    static __m512i gather(const char* rows, int64_t stride) {
        auto load = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * stride)); };
        __m512i a = _mm512_castsi128_si512(load(0));
        a = _mm512_mask_broadcast_i32x4(a, 0x00F0, load(1));
        a = _mm512_mask_broadcast_i32x4(a, 0x0F00, load(2));
        return _mm512_mask_broadcast_i32x4(a, 0xF000, load(3));
    }
    // Lane j of `line[i]` is of row 8 j + i: 8 rows of 8 are transposed in each lane, and whole columns come out.
    static void transpose_halves(const char* rows, int64_t stride, uint16_t* out, int64_t to) {
        __m512i line[8], pair[8], four[8];
        for (int i = 0; i < 8; ++i) line[i] = gather(rows + i * stride, 8 * stride);
        for (int i = 0; i < 8; i += 2) {
            pair[i] = _mm512_unpacklo_epi16(line[i], line[i + 1]);
            pair[i + 1] = _mm512_unpackhi_epi16(line[i], line[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            for (int j = 0; j < 2; ++j) {
                four[i + 2 * j] = _mm512_unpacklo_epi32(pair[i + j], pair[i + 2 + j]);
                four[i + 2 * j + 1] = _mm512_unpackhi_epi32(pair[i + j], pair[i + 2 + j]);
            }
        }
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_si512(out + 2 * i * to, _mm512_unpacklo_epi64(four[i], four[i + 4]));
            _mm512_storeu_si512(out + (2 * i + 1) * to, _mm512_unpackhi_epi64(four[i], four[i + 4]));
        }
    }
    // Each lane of `four` has four elements of each of four columns.
    static void store_columns(__m512i four, int8_t* out, int64_t stride) {
        four = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), four);
        auto store = [&](int i, __m128i column) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * stride), column);
        };
        store(0, _mm512_castsi512_si128(four));
        store(1, _mm512_extracti32x4_epi32(four, 1));
        store(2, _mm512_extracti32x4_epi32(four, 2));
        store(3, _mm512_extracti32x4_epi32(four, 3));
    }
    // Lane j of four such vectors has rows 4 j to 4 j + 3 of sixteen.
    static void transpose_bytes(const char* rows, int64_t stride, int8_t* out, int64_t to) {
        for (int half = 0; half < kCells; half += 16) {
            __m512i line[4];
            for (int i = 0; i < 4; ++i) line[i] = gather(rows + (half + i) * stride, 4 * stride);
            __m512i ab = _mm512_unpacklo_epi8(line[0], line[1]), cd = _mm512_unpacklo_epi8(line[2], line[3]);
            store_columns(_mm512_unpacklo_epi16(ab, cd), out + half, to);
            store_columns(_mm512_unpackhi_epi16(ab, cd), out + half + 4 * to, to);
            ab = _mm512_unpackhi_epi8(line[0], line[1]), cd = _mm512_unpackhi_epi8(line[2], line[3]);
            store_columns(_mm512_unpacklo_epi16(ab, cd), out + half + 8 * to, to);
            store_columns(_mm512_unpackhi_epi16(ab, cd), out + half + 12 * to, to);
        }
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
