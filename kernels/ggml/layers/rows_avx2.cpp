// rows.hpp with AVX2, FMA and F16C.
#include "row_kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vector_avx2.hpp"

namespace specx {
namespace {

constexpr RowKernels kKernels = row_kernels_of<VectorAvx2>();

}  // namespace

const RowKernels* row_kernels_avx2() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const RowKernels* row_kernels_avx2() { return nullptr; }
}  // namespace specx

#endif
