// Vectors of floats with NEON. What they have: vector_math.hpp.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace specx {
namespace {

struct VectorNeon {
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
    static reg swap_pairs(reg a) { return vrev64q_f32(a); }
    static float fold_sums(const reg* sums) {
        reg four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
        float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    static float reduce_max(reg a) { return vmaxvq_f32(a); }
    static reg load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static void store_half(uint16_t* p, reg a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
    static reg load_int8(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, sizeof four);
        int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    }
};

}  // namespace
}  // namespace specx
