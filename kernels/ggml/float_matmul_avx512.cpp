// AVX-512 for float_matmul.hpp.
#include "float_matmul_tile.hpp"

namespace specx {
#ifdef __AVX512F__
const FloatKernels* float_kernels_avx512() { return float_kernels<64, 12>(); }
#else
const FloatKernels* float_kernels_avx512() { return nullptr; }
#endif
}  // namespace specx
