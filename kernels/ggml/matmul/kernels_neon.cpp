// Kernels for Arm: a register is a column of 4 rows. Built twice: with the dot-product instructions, and with
// SPECX_I8MM for the matrix instructions besides, which multiply two rows with two tokens.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD) && \
    (!defined(SPECX_I8MM) || defined(__ARM_FEATURE_MATMUL_INT8))
#define SPECX_HAS_NEON 1
#include <arm_neon.h>

#include "table.hpp"

namespace specx {
namespace {

struct Neon {
    static constexpr int kLanes = 4;
    static constexpr int together(const Format&, int) { return 8; }
    static constexpr bool kOffsetSigned = false;
    using Bytes = uint8x16_t;
    using Ints = int32x4_t;
    using Floats = float32x4_t;

    static SPECX_INLINE Bytes load(const uint8_t* p) { return vld1q_u8(p); }
    static SPECX_INLINE Bytes offset(Bytes w) { return w; }

    template <int shift>
    static SPECX_INLINE Bytes nibbles(Bytes w) {
        if constexpr (shift == 4) return vshrq_n_u8(w, 4);
        return vandq_u8(w, vdupq_n_u8(15));
    }
    // Shift counts are signed: negative ones to the right.
    template <int column>
    static SPECX_INLINE Bytes bits(Bytes low, Bytes plane) {
        return vorrq_u8(low, vandq_u8(vshlq_u8(plane, vdupq_n_s8(4 - column)), vdupq_n_u8(0x10)));
    }
    template <int column>
    static SPECX_INLINE Bytes pairs(Bytes low, Bytes plane) {
        return vorrq_u8(low, vandq_u8(vshlq_u8(plane, vdupq_n_s8(4 - 2 * column)), vdupq_n_u8(0x30)));
    }
    static SPECX_INLINE Bytes lookup(const int8_t* values, Bytes index) {
        return vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(values), index));
    }

    // All quants, 0..63 or signed, are the same read as signed bytes.
    static SPECX_INLINE Ints splat_int(int x) { return vdupq_n_s32(x); }
    template <int largest, int first, int columns, int tokens, class Weights>
    static SPECX_INLINE void dot(const Weights& w, const int8_t* x, Ints* sum) {
        each<first / 4, columns / 4>([&](auto four) SPECX_INLINE_LAMBDA {
            int8x16_t activations[tokens];
            SPECX_UNROLL
            for (int t = 0; t < tokens; ++t) activations[t] = vld1q_s8(x + t * kBlock + 16 * four);
            each<0, 4>([&](auto c) SPECX_INLINE_LAMBDA {
                const int8x16_t column = vreinterpretq_s8_u8(w.template get<4 * four + c>());
                SPECX_UNROLL
                for (int t = 0; t < tokens; ++t) sum[t] = vdotq_laneq_s32(sum[t], column, activations[t], c);
            });
        });
    }

    static SPECX_INLINE float quantize(const float* x, int8_t* q, int32_t (&sums)[2]) {
        uint32x4_t largest = vdupq_n_u32(0);
        SPECX_UNROLL
        for (int i = 0; i < 8; ++i)
            largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * i))));
        const BlockScale scale(static_cast<int32_t>(vmaxvq_u32(largest)));
        const uint32x4_t keep = vdupq_n_u32(scale.usable ? ~0u : 0u);
        SPECX_UNROLL
        for (int half = 0; half < 2; ++half) {
            int16x4_t words[4];
            SPECX_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + 16 * half + 4 * i), scale.inverse);
                words[i] = vmovn_s32(vandq_s32(vcvtnq_s32_f32(scaled), vreinterpretq_s32_u32(keep)));
            }
            const int8x16_t bytes = vcombine_s8(vmovn_s16(vcombine_s16(words[0], words[1])),
                                                vmovn_s16(vcombine_s16(words[2], words[3])));
            vst1q_s8(q + 16 * half, bytes);
            sums[half] = vaddlvq_s8(bytes);
        }
        return scale.d;
    }

    static SPECX_INLINE Floats zero() { return vdupq_n_f32(0); }
    static SPECX_INLINE Floats load_floats(const float* p) { return vld1q_f32(p); }
    static SPECX_INLINE Floats splat(float x) { return vdupq_n_f32(x); }
    static SPECX_INLINE Floats as_floats(Ints x) { return vreinterpretq_f32_s32(x); }
    static SPECX_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
    static SPECX_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
    static SPECX_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
    static SPECX_INLINE void store(float* p, Floats x) { vst1q_f32(p, x); }
    static SPECX_INLINE void half_to_float(const uint8_t* p, float* out) {
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
        for (int i = 0; i < kRows; i += 4)
            vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    }
};

#if defined(SPECX_I8MM)
struct NeonI8mm : Neon {
    // Two columns of 4 rows, interleaved, are 8 bytes of rows 0 and 1, and of rows 2 and 3. Times 8 activations of two
    // tokens, each gives four sums: of both rows and both tokens. A token left over goes the other way.
    template <int largest, int first, int columns, int tokens, class Weights>
    static SPECX_INLINE void dot(const Weights& w, const int8_t* x, Ints* sum) {
        constexpr int pairs = tokens / 2;
        Ints upper[pairs + 1], lower[pairs + 1];
        SPECX_UNROLL
        for (int p = 0; p < pairs; ++p) upper[p] = lower[p] = vdupq_n_s32(0);
        each<first / 2, columns / 2>([&](auto two) SPECX_INLINE_LAMBDA {
            const uint32x4_t a = vreinterpretq_u32_u8(w.template get<2 * two>());
            const uint32x4_t b = vreinterpretq_u32_u8(w.template get<2 * two + 1>());
            const int8x16_t above = vreinterpretq_s8_u32(vzip1q_u32(a, b));
            const int8x16_t below = vreinterpretq_s8_u32(vzip2q_u32(a, b));
            SPECX_UNROLL
            for (int p = 0; p < pairs; ++p) {
                const int8_t* eight = x + 2 * p * kBlock + 8 * two;
                const int8x16_t both = vcombine_s8(vld1_s8(eight), vld1_s8(eight + kBlock));
                upper[p] = vmmlaq_s32(upper[p], above, both);
                lower[p] = vmmlaq_s32(lower[p], below, both);
            }
        });
        SPECX_UNROLL
        for (int p = 0; p < pairs; ++p) {
            sum[2 * p] = vaddq_s32(sum[2 * p], vuzp1q_s32(upper[p], lower[p]));
            sum[2 * p + 1] = vaddq_s32(sum[2 * p + 1], vuzp2q_s32(upper[p], lower[p]));
        }
        if constexpr (tokens % 2 == 1)
            Neon::dot<largest, first, columns, 1>(w, x + 2 * pairs * kBlock, sum + 2 * pairs);
    }
};
#endif

}  // namespace
}  // namespace specx
#endif

namespace specx {
#if defined(SPECX_I8MM)
#define SPECX_NEON_KERNELS neon_i8mm_kernels
#define SPECX_NEON NeonI8mm
#else
#define SPECX_NEON_KERNELS neon_dotprod_kernels
#define SPECX_NEON Neon
#endif
#if defined(SPECX_HAS_NEON)
const Kernels* SPECX_NEON_KERNELS() { return all_kernels<SPECX_NEON, 8>(); }
#else
const Kernels* SPECX_NEON_KERNELS() { return nullptr; }
#endif
}  // namespace specx
