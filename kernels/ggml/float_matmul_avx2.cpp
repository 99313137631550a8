// AVX2 for float_matmul.hpp.
#include "float_matmul_tile.hpp"

namespace specx {
#ifdef __AVX2__
const FloatKernels* float_kernels_avx2() { return float_kernels<32, 6>(); }
#else
const FloatKernels* float_kernels_avx2() { return nullptr; }
#endif
}  // namespace specx
