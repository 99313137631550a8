// Plain C++ for float_matmul.hpp.
#include "float_matmul_tile.hpp"

namespace specx {
namespace {

struct Generic {
    using reg = float;
    static constexpr int kWidth = 1, kRows = 1, kTokens = 1;
    static reg zero() { return 0.0f; }
    template <class Weight>
    static reg load(const Weight* p) {
        return to_float(*p);
    }
    static reg fma(reg a, reg b, reg c) { return std::fmaf(a, b, c); }
    static reg add(reg a, reg b) { return a + b; }
    static float sum(reg a) { return a; }
    static void store(float* p, reg a) { *p = a; }
};

}  // namespace
const FloatKernels* float_kernels_generic() { return float_kernels<Generic>(); }
}  // namespace specx
