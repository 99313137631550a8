#include "float_matmul.hpp"

#include <algorithm>

#include "float_matmul_tile.hpp"

namespace specx {
namespace {

const FloatKernels& kernels_for(Isa isa) {
    const FloatKernels* found = nullptr;
    if (isa == Isa::avx512_vnni || isa == Isa::amx_int8) found = float_kernels_avx512();
    if (isa == Isa::avx2 || isa == Isa::avx_vnni) found = float_kernels_avx2();
    return found != nullptr ? *found : *float_kernels<16, 2>();
}

}  // namespace

void multiply_floats(Isa isa, int64_t k, int64_t rows, int64_t n, const void* w, size_t w_stride, const void* x,
                     size_t x_stride, void* out, size_t out_stride, int ith, int nth) {
    const FloatKernels& kernels = kernels_for(isa);
    const int64_t tiles = (n + kernels.tokens - 1) / kernels.tokens;
    const int64_t end = rows * tiles * (ith + 1) / nth;
    for (int64_t i = rows * tiles * ith / nth; i < end; ++i) {
        const int64_t row = i / tiles, first = i % tiles * kernels.tokens;
        kernels.multiply(k, reinterpret_cast<const float*>(static_cast<const char*>(w) + row * w_stride),
                         static_cast<int>(std::min<int64_t>(kernels.tokens, n - first)),
                         static_cast<const char*>(x) + first * x_stride, x_stride,
                         static_cast<char*>(out) + first * out_stride + row * sizeof(float), out_stride);
    }
}

}  // namespace specx
