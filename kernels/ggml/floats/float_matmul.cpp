#include "float_matmul.hpp"

#include <algorithm>

#include "float_matmul_tile.hpp"
#include "ggml_abi.hpp"

namespace specx {
namespace {

// Activations that all rows go over again and again must stay in the L2 cache.
constexpr size_t kCachedActivations = size_t{1} << 19;

const FloatKernels& kernels_for(Isa isa) {
    const FloatKernels* found = nullptr;
    if (isa == Isa::avx512_vnni || isa == Isa::amx_int8) found = float_kernels_avx512();
    if (isa == Isa::avx2 || isa == Isa::avx_vnni) found = float_kernels_avx2();
    if (isa == Isa::neon_dotprod || isa == Isa::neon_i8mm) found = float_kernels_neon();
    return found != nullptr ? *found : *float_kernels_generic();
}

FloatKernel kernel_of(const FloatKernels& kernels, int type) {
    switch (type) {
        case ggml::kTypeF32: return kernels.f32;
        case ggml::kTypeF16: return kernels.f16;
        case ggml::kTypeBF16: return kernels.bf16;
        default: return nullptr;
    }
}

}  // namespace

bool float_matmul_supported(int type) { return kernel_of(*float_kernels_generic(), type) != nullptr; }

void multiply_floats(Isa isa, int type, int64_t k, int64_t rows, int64_t n, const void* w, size_t w_stride,
                     const void* x, size_t x_stride, void* out, size_t out_stride, int ith, int nth) {
    const FloatKernels& kernels = kernels_for(isa);
    const FloatKernel multiply = kernel_of(kernels, type);
    const int64_t groups = (rows + kernels.rows - 1) / kernels.rows;
    const int64_t fitting = static_cast<int64_t>(kCachedActivations / (static_cast<size_t>(k) * sizeof(float)));
    const int64_t at_once = std::max<int64_t>(fitting / kernels.tokens, 1) * kernels.tokens;
    for (int64_t begin = 0; begin < n; begin += at_once) {
        const int64_t end = std::min(begin + at_once, n), tiles = (end - begin + kernels.tokens - 1) / kernels.tokens;
        for (int64_t group = groups * ith / nth; group < groups * (ith + 1) / nth; ++group) {
            const int64_t row = group * kernels.rows;
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t first = begin + (end - begin) * tile / tiles;
                const int64_t last = begin + (end - begin) * (tile + 1) / tiles;
                multiply(k, static_cast<int>(std::min<int64_t>(kernels.rows, rows - row)),
                         static_cast<const char*>(w) + row * w_stride, w_stride, static_cast<int>(last - first),
                         static_cast<const char*>(x) + first * x_stride, x_stride,
                         static_cast<char*>(out) + first * out_stride + row * sizeof(float), out_stride);
            }
        }
    }
}

}  // namespace specx
