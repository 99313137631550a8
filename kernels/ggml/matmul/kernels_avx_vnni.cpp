// Kernels for AVX-VNNI: dot products of four bytes in 256-bit registers.
#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#include "simd_avx2.hpp"

namespace specx {
namespace {

struct AvxVnni : Avx2Base {
    static constexpr int together(const Format&, int) { return 4; }
    static constexpr bool kOffsetSigned = true;
    static SPECX_INLINE Bytes offset(Bytes w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }

    template <int largest, int first, int columns, int tokens, class Weights>
    static SPECX_INLINE void dot(const Weights& w, const int8_t* x, Ints* sum) {
        each<first, columns>([&](auto c) SPECX_INLINE_LAMBDA {
            const Bytes column = w.template get<c>();
            SPECX_UNROLL
            for (int t = 0; t < tokens; ++t)
                sum[t] = _mm256_dpbusd_avx_epi32(sum[t], column, four(x + t * kBlock + 4 * c));
        });
    }
};

}  // namespace

const Kernels* avx_vnni_kernels() { return all_kernels<AvxVnni, 8>(); }

}  // namespace specx
#else
namespace specx {
const Kernels* avx_vnni_kernels() { return nullptr; }
}  // namespace specx
#endif
