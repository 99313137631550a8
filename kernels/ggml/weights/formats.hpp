// The quantized weight types, and how a group of 16 rows of each is laid out once packed.
//
// A group holds its headers (scales) first, padded to 64 bytes, then its quants, block by block of 32 weights:
// both are read front to back, so a group is two forward streams and the next group follows at once. In both,
// what belongs to the 16 rows lies side by side.
//
//   header, once per 32 weights    Q4_0 Q5_0 Q8_0 IQ4_NL: d[16]                    (d, m: half floats)
//                                  Q4_1 Q5_1: d[16] m[16]
//   header, once per 256 weights   Q4_K Q5_K: d[16] dmin[16] scales[12][16]        (the 12 bytes as in ggml)
//                                  Q6_K: d[16] scales[16][16]
//
// The quants of a block of 32 are made of planes. Weights 4c..4c+3 of a row are "column" c, 0 <= c < 8; four
// neighbouring bytes of a plane belong to the four weights of a column in one row, then comes the next row:
//
//   bytes    [column 8][row 16][4]  the weight                                     512 bytes
//   nibbles  [column 4][row 16][4]  low bits of column c, and of column c + 4 above  256
//   pairs    [2][row 16][4]         bits 4 and 5: columns 4i..4i+3, two bits each  128
//   bits     [row 16][4]            bit 4: columns 0..7, one bit each               64
//
// So one load of 64 bytes is one column of all 16 rows: the operand of an 8-bit dot product whose other side
// is four activations, the same for every row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul.hpp"

// Inlined even in unoptimized builds: a function kept in common by files built for different instruction sets would
// be whichever of them the linker meets first.
#define SPECX_INLINE inline __attribute__((always_inline))

namespace specx {

constexpr int kRows = static_cast<int>(kGroupRows);
constexpr int kBlock = 32;   // weights (and activations) that share an activation scale
constexpr int kColumns = 8;  // of 4 weights each
constexpr size_t kColumnBytes = 64;

enum class Plane { none, bits, pairs, nibbles, bytes };

SPECX_INLINE constexpr size_t plane_bytes(Plane plane) {
    switch (plane) {
        case Plane::bits: return 64;
        case Plane::pairs: return 128;
        case Plane::nibbles: return 256;
        case Plane::bytes: return 512;
        default: return 0;
    }
}

// What is stored beside the quants, and so the formula of a weight with quant q:
enum class Scale {
    d,        // d * (q - zero)
    d_m,      // d * q + m
    d_dmin,   // d * scale_j * q - dmin * min_j       j = block of 32 in the block of 256
    d_int8,   // d * scale_j * (q - zero)             j = 16 weights in the block of 256
};

struct Format {
    int type;              // ggml's number
    Plane low, high;       // the planes of a block, in this order
    Scale scale;
    int zero;              // subtracted from the quant
    int largest;           // largest quant, in magnitude
    bool is_signed;        // quants are signed bytes once decoded
    int source_bytes;      // of a source block of `blocks` * 32 weights
    int blocks;            // blocks of 32 per header
    int header_bytes;      // per row

    SPECX_INLINE constexpr size_t block_bytes() const { return plane_bytes(low) + plane_bytes(high); }
    SPECX_INLINE constexpr size_t header_group_bytes() const { return static_cast<size_t>(header_bytes) * kRows; }
    SPECX_INLINE constexpr bool has_minimum() const { return scale == Scale::d_m || scale == Scale::d_dmin; }
};

constexpr Format kQ4_0 = {2, Plane::nibbles, Plane::none, Scale::d, 8, 15, false, 18, 1, 2};
constexpr Format kQ4_1 = {3, Plane::nibbles, Plane::none, Scale::d_m, 0, 15, false, 20, 1, 4};
constexpr Format kQ5_0 = {6, Plane::nibbles, Plane::bits, Scale::d, 16, 31, false, 22, 1, 2};
constexpr Format kQ5_1 = {7, Plane::nibbles, Plane::bits, Scale::d_m, 0, 31, false, 24, 1, 4};
constexpr Format kQ8_0 = {8, Plane::bytes, Plane::none, Scale::d, 0, 128, true, 34, 1, 2};
constexpr Format kQ4_K = {12, Plane::nibbles, Plane::none, Scale::d_dmin, 0, 15, false, 144, 8, 16};
constexpr Format kQ5_K = {13, Plane::nibbles, Plane::bits, Scale::d_dmin, 0, 31, false, 176, 8, 16};
constexpr Format kQ6_K = {14, Plane::nibbles, Plane::pairs, Scale::d_int8, 32, 63, false, 210, 8, 18};
constexpr Format kIQ4_NL = {20, Plane::nibbles, Plane::none, Scale::d, 0, 127, true, 18, 1, 2};

constexpr const Format* kFormats[] = {&kQ4_0, &kQ4_1, &kQ5_0, &kQ5_1, &kQ8_0,
                                      &kQ4_K, &kQ5_K, &kQ6_K, &kIQ4_NL};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

// The position in kFormats of a ggml type, -1 if there is none.
SPECX_INLINE constexpr int format_index(int type) {
    for (int i = 0; i < kFormatCount; ++i)
        if (kFormats[i]->type == type) return i;
    return -1;
}

// The values of IQ4_NL's 16 quants.
constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

SPECX_INLINE constexpr size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Where things are in a packed group of rows of k weights.
struct GroupLayout {
    int64_t blocks;      // of 32 weights
    size_t quants;       // offset of the quants
    size_t group_bytes;  // from one group to the next

    SPECX_INLINE constexpr GroupLayout(const Format& f, int64_t k)
        : blocks(k / kBlock),
          quants(round_up(static_cast<size_t>(blocks / f.blocks) * f.header_group_bytes())),
          group_bytes(quants + static_cast<size_t>(blocks) * f.block_bytes()) {}
};

}  // namespace specx
