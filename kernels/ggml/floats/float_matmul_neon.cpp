// NEON for float_matmul.hpp.
#include "float_matmul_tile.hpp"

#if defined(__aarch64__) && defined(__ARM_NEON)

#include <arm_neon.h>

namespace specx {
namespace {

struct Neon {
    using reg = float32x4_t;
    static constexpr int kWidth = 4, kRows = 2, kTokens = 3;
    static reg zero() { return vdupq_n_f32(0.0f); }
    static reg load(const float* p) { return vld1q_f32(p); }
    static reg load(const Half* p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
    }
    static reg load(const BFloat* p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
    }
    static reg fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
    static reg add(reg a, reg b) { return vaddq_f32(a, b); }
    static float sum(reg a) {
        const float32x2_t two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    static void store(float* p, reg a) { vst1q_f32(p, a); }
};

}  // namespace
const FloatKernels* float_kernels_neon() { return float_kernels<Neon>(); }
}  // namespace specx

#else

namespace specx {
const FloatKernels* float_kernels_neon() { return nullptr; }
}  // namespace specx

#endif
