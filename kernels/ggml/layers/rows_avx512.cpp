// rows.hpp with AVX-512.
#include "row_kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include "vector_avx512.hpp"

namespace specx {
namespace {

constexpr RowKernels kKernels = row_kernels_of<VectorAvx512>();

}  // namespace

const RowKernels* row_kernels_avx512() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const RowKernels* row_kernels_avx512() { return nullptr; }
}  // namespace specx

#endif
