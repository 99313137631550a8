// The AVX2 half of the AVX2 and AVX-VNNI kernels: a register is a column of 8 rows. What is missing is dot().
#pragma once

#include <immintrin.h>

#include "simd_x86.hpp"

namespace specx {
namespace {

struct Avx2Base {
    static constexpr int kLanes = 8;
    using Bytes = __m256i;
    using Ints = __m256i;
    using Floats = __m256;

    static SPECX_INLINE Bytes load(const uint8_t* p) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    }
    template <int shift>
    static SPECX_INLINE Bytes nibbles(Bytes w) {
        return _mm256_and_si256(shift ? _mm256_srli_epi16(w, shift) : w, _mm256_set1_epi8(15));
    }
    template <int column>
    static SPECX_INLINE Bytes bits(Bytes low, Bytes plane) {
        const Bytes moved = column <= 4 ? _mm256_slli_epi16(plane, 4 - column) : _mm256_srli_epi16(plane, column - 4);
        return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(0x10)));
    }
    template <int column>
    static SPECX_INLINE Bytes pairs(Bytes low, Bytes plane) {
        const Bytes moved =
            column <= 2 ? _mm256_slli_epi16(plane, 4 - 2 * column) : _mm256_srli_epi16(plane, 2 * column - 4);
        return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
    }
    static SPECX_INLINE Bytes lookup(const int8_t* values, Bytes index) {
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index);
    }
    static SPECX_INLINE Ints splat_int(int x) { return _mm256_set1_epi32(x); }
    static SPECX_INLINE __m256i four(const int8_t* x) { return _mm256_set1_epi32(load_as<int>(x)); }

    static SPECX_INLINE float quantize(const float* x, int8_t* q, int32_t (&sums)[2]) {
        const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
        __m256 v[4];
        __m256i integers[4], largest = _mm256_setzero_si256();
        SPECX_UNROLL
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        const BlockScale scale(largest_of(_mm_max_epi32(_mm256_castsi256_si128(largest),
                                                        _mm256_extracti128_si256(largest, 1))));
        const __m256i keep = _mm256_set1_epi32(scale.usable ? -1 : 0);
        SPECX_UNROLL
        for (int i = 0; i < 4; ++i)
            integers[i] = _mm256_and_si256(
                keep, _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(scale.inverse))));
        // Packing works within halves of a register; the permutation puts its results in order.
        const __m256i words[2] = {_mm256_packs_epi32(integers[0], integers[1]),
                                  _mm256_packs_epi32(integers[2], integers[3])};
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]),
                                                          _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        store_quants(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1), q, sums);
        return scale.d;
    }

    static SPECX_INLINE Floats zero() { return _mm256_setzero_ps(); }
    static SPECX_INLINE Floats load_floats(const float* p) { return _mm256_load_ps(p); }
    static SPECX_INLINE Floats splat(float x) { return _mm256_set1_ps(x); }
    static SPECX_INLINE Floats as_floats(Ints x) { return _mm256_castsi256_ps(x); }
    static SPECX_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static SPECX_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static SPECX_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static SPECX_INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
    static SPECX_INLINE void half_to_float(const uint8_t* p, float* out) {
        const __m128i* halves = reinterpret_cast<const __m128i*>(p);
        _mm256_store_ps(out, _mm256_cvtph_ps(_mm_load_si128(halves)));
        _mm256_store_ps(out + 8, _mm256_cvtph_ps(_mm_load_si128(halves + 1)));
    }
};

}  // namespace
}  // namespace specx
