// Attention with NEON (any 64-bit Arm processor).
#include "attention_tile.hpp"

#if defined(__aarch64__) && defined(__ARM_NEON)

#include "attention_kernels.hpp"
#include "vector_neon.hpp"

namespace specx {
namespace {

struct Neon : VectorNeon {
    static constexpr int kCells = 8;
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
