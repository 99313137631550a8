// Attention in plain C++, for any processor. Fused multiply-adds are exact functions, as on the others.
#include "attention_kernels.hpp"
#include "attention_tile.hpp"
#include "vector_generic.hpp"

namespace specx {
namespace {

struct Generic : VectorGeneric {
    static constexpr int kCells = 4;

    static void transpose_halves(const char* rows, int64_t stride, uint16_t* out, int64_t to) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 8; ++j) std::memcpy(out + j * to + i, rows + i * stride + 2 * j, 2);
        }
    }
    static void transpose_bytes(const char* rows, int64_t stride, int8_t* out, int64_t to) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 16; ++j) std::memcpy(out + j * to + i, rows + i * stride + j, 1);
        }
    }
};

constexpr AttentionKernels kKernels = kernels_of<Generic>();

}  // namespace

const AttentionKernels* attention_kernels_generic() { return &kKernels; }

}  // namespace specx
