// Attention with NEON (any 64-bit Arm processor).
#include "attention_tile.hpp"

#if defined(__aarch64__) && defined(__ARM_NEON)

#include <arm_neon.h>

#include "attention_kernels.hpp"

namespace specx {
namespace {

struct Neon {
    using reg = float32x4_t;
    static constexpr int kWidth = 4;
    static constexpr int kVectors = 4;
    static void keep(reg* a) { asm("" : "+w"(*a)); }
    static reg load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, reg a) { vst1q_f32(p, a); }
    static reg set(float a) { return vdupq_n_f32(a); }
    static reg add(reg a, reg b) { return vaddq_f32(a, b); }
    static reg mul(reg a, reg b) { return vmulq_f32(a, b); }
    static reg div(reg a, reg b) { return vdivq_f32(a, b); }
    static reg fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
    static reg max(reg a, reg b) { return vmaxq_f32(a, b); }
    static reg min(reg a, reg b) { return vminq_f32(a, b); }
    static reg select_below(reg a, reg b, reg x, reg y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
    static reg round_even(reg a) { return vrndnq_f32(a); }
    static reg power_of_two(reg n) {
        int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    static float reduce_add(reg a) { return vaddvq_f32(a); }
    static float reduce_max(reg a) { return vmaxvq_f32(a); }
    static reg load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static reg load_int8(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, sizeof four);
        int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
    }
    static void transpose(const float* rows, int64_t stride, float* out, int64_t out_stride) {
        reg a = load(rows), b = load(rows + stride), c = load(rows + 2 * stride), d = load(rows + 3 * stride);
        float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
        float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
        store(out, vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)));
        store(out + out_stride, vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)));
        store(out + 2 * out_stride, vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)));
        store(out + 3 * out_stride, vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)));
    }
};

constexpr AttentionKernels kKernels = kernels_of<Neon>();

}  // namespace

const AttentionKernels* attention_kernels_neon() { return &kKernels; }

}  // namespace specx

#else

namespace specx {
const AttentionKernels* attention_kernels_neon() { return nullptr; }
}  // namespace specx

#endif
