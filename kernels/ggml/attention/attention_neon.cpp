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
    static constexpr int kCells = 8;
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
    static float fold_sums(const reg* sums) {
        reg four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
        float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    static float reduce_max(reg a) { return vmaxvq_f32(a); }
    static reg load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
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
    static uint8x16_t load_bytes(const char* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }

    static void transpose_halves(const char* rows, int64_t stride, uint16_t* out, int64_t to) {
        uint16x8_t line[8];
        uint32x4_t pair[8];
        uint64x2_t four[8];
        for (int i = 0; i < 8; ++i) line[i] = vreinterpretq_u16_u8(load_bytes(rows + i * stride));
        for (int i = 0; i < 8; i += 2) {
            pair[i] = vreinterpretq_u32_u16(vzip1q_u16(line[i], line[i + 1]));
            pair[i + 1] = vreinterpretq_u32_u16(vzip2q_u16(line[i], line[i + 1]));
        }
        for (int i = 0; i < 8; i += 4) {
            for (int j = 0; j < 2; ++j) {
                four[i + 2 * j] = vreinterpretq_u64_u32(vzip1q_u32(pair[i + j], pair[i + 2 + j]));
                four[i + 2 * j + 1] = vreinterpretq_u64_u32(vzip2q_u32(pair[i + j], pair[i + 2 + j]));
            }
        }
        for (int i = 0; i < 4; ++i) {
            vst1q_u16(out + 2 * i * to, vreinterpretq_u16_u64(vzip1q_u64(four[i], four[i + 4])));
            vst1q_u16(out + (2 * i + 1) * to, vreinterpretq_u16_u64(vzip2q_u64(four[i], four[i + 4])));
        }
    }
    // What zips to four elements of each of eight columns.
    static void store_columns(uint8x16_t ab, uint8x16_t cd, int8_t* out, int64_t stride) {
        uint16x8_t x = vreinterpretq_u16_u8(ab), y = vreinterpretq_u16_u8(cd);
        uint32_t columns[8];
        vst1q_u32(columns, vreinterpretq_u32_u16(vzip1q_u16(x, y)));
        vst1q_u32(columns + 4, vreinterpretq_u32_u16(vzip2q_u16(x, y)));
        for (int i = 0; i < 8; ++i) std::memcpy(out + i * stride, columns + i, 4);
    }
    static void transpose_bytes(const char* rows, int64_t stride, int8_t* out, int64_t to) {
        for (int half = 0; half < kCells; half += 4) {
            uint8x16_t line[4];
            for (int i = 0; i < 4; ++i) line[i] = load_bytes(rows + (half + i) * stride);
            store_columns(vzip1q_u8(line[0], line[1]), vzip1q_u8(line[2], line[3]), out + half, to);
            store_columns(vzip2q_u8(line[0], line[1]), vzip2q_u8(line[2], line[3]), out + half + 8 * to, to);
        }
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
