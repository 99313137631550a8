// AVX-512 with VNNI, for tile.hpp: a register is a column of all 16 rows.
#pragma once

#include <immintrin.h>

#include "simd_x86.hpp"

namespace specx {
namespace {

struct Avx512 {
    static constexpr int kLanes = 16;
    static constexpr int together(const Format&, int) { return 4; }
    static constexpr bool kOffsetSigned = true;
    using Bytes = __m512i;
    using Ints = __m512i;
    using Floats = __m512;

    static SPECX_INLINE Bytes load(const uint8_t* p) { return _mm512_load_si512(p); }
    static SPECX_INLINE Bytes offset(Bytes w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }

    template <int shift>
    static SPECX_INLINE Bytes nibbles(Bytes w) {
        return _mm512_and_si512(shift ? _mm512_srli_epi16(w, shift) : w, _mm512_set1_epi8(15));
    }
    // low | (high & mask)
    static SPECX_INLINE Bytes merge(Bytes low, Bytes high, Bytes mask) {
        return _mm512_ternarylogic_epi32(low, high, mask, 0xf8);
    }
    template <int column>
    static SPECX_INLINE Bytes bits(Bytes low, Bytes plane) {
        const Bytes moved = column <= 4 ? _mm512_slli_epi16(plane, 4 - column) : _mm512_srli_epi16(plane, column - 4);
        return merge(low, moved, _mm512_set1_epi8(0x10));
    }
    template <int column>
    static SPECX_INLINE Bytes pairs(Bytes low, Bytes plane) {
        const Bytes moved =
            column <= 2 ? _mm512_slli_epi16(plane, 4 - 2 * column) : _mm512_srli_epi16(plane, 2 * column - 4);
        return merge(low, moved, _mm512_set1_epi8(0x30));
    }
    static SPECX_INLINE Bytes lookup(const int8_t* values, Bytes index) {
        const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index);
    }

    // sum += w * the four activations at x. GCC would load these into a register of their own first: twice the
    // instructions, and so a window half as long in which the processor finds work while it waits for memory.
    static SPECX_INLINE void step(Ints& sum, Bytes w, const int8_t* x) {
#if defined(__GNUC__) && !defined(__clang__)
        const auto* four = reinterpret_cast<const int8_t(*)[4]>(x);
        __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*four));
#else
        sum = _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(load_as<int>(x)));
#endif
    }

    static SPECX_INLINE Ints splat_int(int x) { return _mm512_set1_epi32(x); }
    template <int largest, int first, int columns, int tokens, class Weights>
    static SPECX_INLINE void dot(const Weights& w, const int8_t* x, Ints* sum) {
        each<first, columns>([&](auto c) SPECX_INLINE_LAMBDA {
            const Bytes column = w.template get<c>();
            SPECX_UNROLL
            for (int t = 0; t < tokens; ++t) step(sum[t], column, x + t * kBlock + 4 * c);
        });
    }

    static SPECX_INLINE float quantize(const float* x, int8_t* q, int32_t (&sums)[2]) {
        const __m512 v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
        const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
        const __m512i both = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v[0]), magnitude),
                                              _mm512_and_si512(_mm512_castps_si512(v[1]), magnitude));
        const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
        const BlockScale scale(
            largest_of(_mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1))));
        const __m512 inverse = _mm512_set1_ps(scale.inverse);
        const __mmask16 keep = scale.usable ? 0xffff : 0;
        store_quants(_mm512_maskz_cvtepi32_epi8(keep, _mm512_cvtps_epi32(_mm512_mul_ps(v[0], inverse))),
                     _mm512_maskz_cvtepi32_epi8(keep, _mm512_cvtps_epi32(_mm512_mul_ps(v[1], inverse))), q, sums);
        return scale.d;
    }

    static SPECX_INLINE Floats zero() { return _mm512_setzero_ps(); }
    static SPECX_INLINE Floats load_floats(const float* p) { return _mm512_load_ps(p); }
    static SPECX_INLINE Floats splat(float x) { return _mm512_set1_ps(x); }
    static SPECX_INLINE Floats as_floats(Ints x) { return _mm512_castsi512_ps(x); }
    static SPECX_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static SPECX_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static SPECX_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static SPECX_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
    static SPECX_INLINE void half_to_float(const uint8_t* p, float* out) {
        _mm512_store_ps(out, _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p))));
    }
};

}  // namespace
}  // namespace specx
