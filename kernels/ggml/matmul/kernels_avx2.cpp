// Kernels for AVX2, with pairs of products added up in 16 bits.
#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.hpp"

namespace specx {
namespace {

struct Avx2 : Avx2Base {
    // All of a tile, and each column is decoded as they get to it. Where that takes long, as with quants of two planes, and
    // tokens are many, two at a time with the columns of a block held: at 8 tokens, weights in the cache, 6% less time for
    // Q6_K and 4% for Q5_0. The other types gain nothing, or lose.
    static constexpr int together(const Format& f, int n) {
        return n > 4 && f.high != Plane::none && !f.has_minimum() ? 2 : 8;
    }
    static constexpr bool kOffsetSigned = false;
    static SPECX_INLINE Bytes offset(Bytes w) { return w; }

    // vpmaddubsw multiplies unsigned with signed bytes and adds two products in 16 bits, saturated. Quants up to
    // 15 leave room for the sum of eight columns, up to 31 for four, up to 63 for two. Signed quants give their
    // sign to the activation: 2 * 128 * 127 still fits.
    template <int largest, int first, int columns, int tokens, class Weights>
    static SPECX_INLINE void dot(const Weights& w, const int8_t* x, Ints* sum) {
        constexpr int room = 32767 / (2 * 127 * largest);
        constexpr int together = room < columns ? room : columns;
        each<0, columns / together>([&](auto batch) SPECX_INLINE_LAMBDA {
            constexpr int start = first + batch * together;
            __m256i pairs[tokens];
            each<start, together>([&](auto c) SPECX_INLINE_LAMBDA {
                const Bytes column = w.template get<c>();
                SPECX_UNROLL
                for (int t = 0; t < tokens; ++t) {
                    const __m256i next = products<largest>(column, four(x + t * kBlock + 4 * c));
                    pairs[t] = c == start ? next : _mm256_add_epi16(pairs[t], next);
                    in_order(pairs[t]);
                }
            });
            SPECX_UNROLL
            for (int t = 0; t < tokens; ++t)
                in_order(sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs[t], _mm256_set1_epi16(1))));
        });
    }

    // Compilers like to multiply everything first and add up later, for which there are not enough registers.
    static SPECX_INLINE void in_order(__m256i& sum) { __asm__("" : "+x"(sum)); }

    template <int largest>
    static SPECX_INLINE __m256i products(Bytes w, Bytes x) {
        if constexpr (largest < 127) return _mm256_maddubs_epi16(w, x);
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    }
};

}  // namespace

const Kernels* avx2_kernels() { return all_kernels<Avx2, 8>(); }

}  // namespace specx
#else
namespace specx {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace specx
#endif
