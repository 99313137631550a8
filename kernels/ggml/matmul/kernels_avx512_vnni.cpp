// Kernels for AVX-512 with VNNI.
#include "kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#include "simd_avx512.hpp"

namespace specx {

const Kernels* avx512_vnni_kernels() { return all_kernels<Avx512, 16>(); }

}  // namespace specx
#else
namespace specx {
const Kernels* avx512_vnni_kernels() { return nullptr; }
}  // namespace specx
#endif
