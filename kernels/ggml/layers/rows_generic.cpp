// rows.hpp in plain C++, for any processor.
#include "row_kernels.hpp"
#include "vector_generic.hpp"

namespace specx {
namespace {

constexpr RowKernels kKernels = row_kernels_of<VectorGeneric>();

}  // namespace

const RowKernels* row_kernels_generic() { return &kKernels; }

}  // namespace specx
