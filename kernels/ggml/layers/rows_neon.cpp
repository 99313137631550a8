// rows.hpp with NEON.
#include "row_kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_NEON)

#include "vector_neon.hpp"

namespace specx {
namespace {

constexpr RowKernels kKernels = row_kernels_of<VectorNeon>();

}  // namespace

const RowKernels* row_kernels_neon() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const RowKernels* row_kernels_neon() { return nullptr; }
}  // namespace specx

#endif
