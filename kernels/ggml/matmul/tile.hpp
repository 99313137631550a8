// The multiplication kernel, written once for all weight types and instruction sets. Included by one file for each
// instruction set, which supplies `Simd`:
//
//   kLanes                 rows of a group in one register (16, 8 or 4)
//   Bytes, Ints, Floats    a column of kLanes rows; one int or float a row
//   kOffsetSigned          dot products want unsigned weights: 128 is added to signed ones, and in `extra`
//   together(format, n)    how many of n tokens to multiply side by side, so that their chains of additions overlap
//   load, nibbles<shift>, bits<column>, pairs<column>, lookup, offset    quants from planes (formats.hpp)
//   dot<largest, first, columns, tokens>(w, x, s)    s[t] += the sum over some columns of w times what is at
//                          x + t * kBlock; `largest` is the largest quant
//   splat_int, zero, load_floats, splat, as_floats, add, mul, fma, store, half_to_float
//   quantize               see quantize.hpp
//
// Everything lies in an anonymous namespace: two instruction sets must never share an instance of a template.
#pragma once

#include <cstring>
#include <utility>

#include "kernels.hpp"

#if defined(__clang__)
#define SPECX_UNROLL _Pragma("clang loop unroll(full)")
#define SPECX_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define SPECX_UNROLL _Pragma("GCC unroll 16")
#define SPECX_NO_UNROLL _Pragma("GCC unroll 1")
#endif
#define SPECX_INLINE_LAMBDA __attribute__((always_inline))

namespace specx {
namespace {

// How far ahead of the quants being multiplied memory is fetched, in bytes: into the second-level cache early, which
// keeps enough lines in flight for the full bandwidth, and from there into the first. Found by measurement.
constexpr size_t kPrefetchFar = 8192, kPrefetchNear = 2048;

// f(first), ..., f(first + count - 1), with constants.
template <int first, int count, class F>
SPECX_INLINE void each(F f) {
    f(std::integral_constant<int, first>());
    if constexpr (count > 1) each<first + 1, count - 1>(f);
}

template <class F>
SPECX_INLINE F load_as(const void* p) {
    F value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// What a block takes of a group, its share of the headers included.
template <int format>
constexpr size_t kBlockShare =
    kFormats[format]->block_bytes() + kFormats[format]->header_group_bytes() / kFormats[format]->blocks;

// `share` is where the quants start at a group's first block, and goes on by kBlockShare at each one, not by what the
// quants of a block take: so it comes to where those of the next group start, and what is fetched has no gaps.
template <int format>
SPECX_INLINE void prefetch(const uint8_t* share) {
    for (size_t line = 0; line < kBlockShare<format>; line += 64) {
        __builtin_prefetch(share + kPrefetchNear + line, 0, 3);
        __builtin_prefetch(share + kPrefetchFar + line, 0, 2);
    }
}

// The scales of one header as floats: [block or, in Q6_K, half block][row].
template <int format>
struct Scales {
    static constexpr Format f = *kFormats[format];
    static constexpr int kCount = f.scale == Scale::d_int8 ? 2 * f.blocks : f.blocks;
    static constexpr int kMinima = f.has_minimum() ? f.blocks : 1;
    alignas(64) float d[kCount][kRows];
    alignas(64) float minimum[kMinima][kRows];

    template <class Simd>
    SPECX_INLINE void read(const uint8_t* header) {
        if constexpr (f.scale == Scale::d) Simd::half_to_float(header, d[0]);
        if constexpr (f.scale == Scale::d_m) {
            Simd::half_to_float(header, d[0]);
            Simd::half_to_float(header + 2 * kRows, minimum[0]);
        }
        if constexpr (f.scale == Scale::d_int8) read_int8<Simd>(header);
        if constexpr (f.scale == Scale::d_dmin) read_dmin<Simd>(header);
    }

  private:
    // In loops that compilers turn into vector code: over bytes, or from 16 bytes to 16 floats.
    template <class Byte>
    SPECX_INLINE static void scaled(const float* super, const Byte* bytes, float (*out)[kRows], int count) {
        for (int j = 0; j < count; ++j)
            for (int r = 0; r < kRows; ++r) out[j][r] = super[r] * static_cast<float>(bytes[j * kRows + r]);
    }

    template <class Simd>
    SPECX_INLINE void read_int8(const uint8_t* header) {
        alignas(64) float super[kRows];
        Simd::half_to_float(header, super);
        scaled(super, reinterpret_cast<const int8_t*>(header + 2 * kRows), d, kCount);
    }

    // Six bits for each scale and minimum: of the blocks 0..3 in the low bits of bytes 0..3 and 4..7, of the
    // blocks 4..7 in the halves of bytes 8..11, their upper two bits above the former.
    template <class Simd>
    SPECX_INLINE void read_dmin(const uint8_t* header) {
        constexpr int four = 4 * kRows;
        alignas(64) float super[2][kRows];
        alignas(64) uint8_t low[four], high[four], both[four], scale[2 * four], least[2 * four];
        Simd::half_to_float(header, super[0]);
        Simd::half_to_float(header + 2 * kRows, super[1]);
        for (int r = 0; r < kRows; ++r) super[1][r] = -super[1][r];
        std::memcpy(low, header + four, four);
        std::memcpy(high, header + 2 * four, four);
        std::memcpy(both, header + 3 * four, four);
        for (int i = 0; i < four; ++i) {
            scale[i] = low[i] & 63;
            least[i] = high[i] & 63;
            scale[four + i] = static_cast<uint8_t>((both[i] & 15) | (low[i] >> 2 & 0x30));
            least[four + i] = static_cast<uint8_t>(both[i] >> 4 | (high[i] >> 2 & 0x30));
        }
        scaled(super[0], scale, d, 2 * 4);
        scaled(super[1], least, minimum, 2 * 4);
    }
};

// Column c of a block, for the lanes at `planes` (the block's start plus 4 bytes for each row before them).
template <class Simd, int format, int c>
SPECX_INLINE typename Simd::Bytes column(const uint8_t* planes) {
    constexpr Format f = *kFormats[format];
    if constexpr (f.low == Plane::bytes) return Simd::offset(Simd::load(planes + c * kColumnBytes));
    const auto low = Simd::template nibbles<c / 4 * 4>(Simd::load(planes + c % 4 * kColumnBytes));
    const uint8_t* high = planes + plane_bytes(f.low);
    if constexpr (f.type == kIQ4_NL.type) return Simd::offset(Simd::lookup(kIQ4Values, low));
    if constexpr (f.high == Plane::bits) return Simd::template bits<c>(low, Simd::load(high));
    if constexpr (f.high == Plane::pairs)
        return Simd::template pairs<c % 4>(low, Simd::load(high + c / 4 * kColumnBytes));
    return low;
}

// The columns of a block: decoded once and held in registers, or, where one dot() is all that needs them, decoded as it
// gets to them.
template <class Simd, int format, bool held>
struct Columns {
    typename Simd::Bytes at[kColumns];

    SPECX_INLINE explicit Columns(const uint8_t* planes) {
        each<0, kColumns>([&](auto c) SPECX_INLINE_LAMBDA { at[c] = column<Simd, format, c>(planes); });
    }
    template <int c>
    SPECX_INLINE typename Simd::Bytes get() const {
        return at[c];
    }
};

template <class Simd, int format>
struct Columns<Simd, format, false> {
    const uint8_t* planes;

    SPECX_INLINE explicit Columns(const uint8_t* p) : planes(p) {}
    template <int c>
    SPECX_INLINE typename Simd::Bytes get() const {
        return column<Simd, format, c>(planes);
    }
};

// Adds one block's products for `tokens` tokens from t on, of n: `x` is the block's activations, `block` its number in
// the header, `sum` what belongs to token t.
template <class Simd, int format, int n, int tokens, class Weights>
SPECX_INLINE void accumulate(typename Simd::Floats* sum, const Weights& w, const Scales<format>& scales, int block,
                             int lane, const uint8_t* x, int t) {
    constexpr Format f = *kFormats[format];
    constexpr int halves = f.scale == Scale::d_int8 ? 2 : 1;
    const int8_t* q = reinterpret_cast<const int8_t*>(x) + t * kBlock;
    const uint8_t* d = x + n * kBlock + 4 * t;
    const uint8_t* extra = d + 4 * n;
    typename Simd::Ints dot[halves][tokens];
    SPECX_UNROLL
    for (int h = 0; h < halves; ++h) {
        SPECX_UNROLL
        for (int i = 0; i < tokens; ++i)
            dot[h][i] = Simd::splat_int(f.has_minimum() ? kFloatBits : load_as<int>(extra + 4 * (h * n + i)));
    }
    constexpr int columns = kColumns / halves;
    Simd::template dot<f.largest, 0, columns, tokens>(w, q, dot[0]);
    if constexpr (halves == 2) Simd::template dot<f.largest, columns, columns, tokens>(w, q, dot[1]);
    // (dot + kFloat) * scale - kFloat * scale: the second product is exact, so that this is dot * scale, rounded once.
    const auto scale = Simd::load_floats(scales.d[halves * block] + lane);
    const auto less = Simd::mul(scale, Simd::splat(-kFloat));
    SPECX_UNROLL
    for (int i = 0; i < tokens; ++i) {
        auto scaled = Simd::fma(Simd::as_floats(dot[0][i]), scale, less);
        if constexpr (halves == 2)
            scaled = Simd::fma(Simd::add(Simd::as_floats(dot[1][i]), Simd::splat(-kFloat)),
                               Simd::load_floats(scales.d[2 * block + 1] + lane), scaled);
        auto& to = sum[i];
        to = Simd::fma(scaled, Simd::splat(load_as<float>(d + 4 * i)), to);
        if constexpr (f.has_minimum())
            to = Simd::fma(Simd::load_floats(scales.minimum[block] + lane),
                           Simd::splat(load_as<float>(extra + 4 * i)), to);
    }
}

// All n tokens, some at a time.
template <class Simd, int format, int n, int t, class Weights>
SPECX_INLINE void accumulate_all(typename Simd::Floats* sum, const Weights& w, const Scales<format>& scales, int block,
                                 int lane, const uint8_t* x) {
    constexpr int together = Simd::together(*kFormats[format], n), tokens = n - t < together ? n - t : together;
    accumulate<Simd, format, n, tokens>(sum + t, w, scales, block, lane, x, t);
    if constexpr (t + tokens < n) accumulate_all<Simd, format, n, t + tokens>(sum, w, scales, block, lane, x);
}

// A group of 16 rows times a tile of n tokens.
template <class Simd, int format, int n>
void multiply_tile(const uint8_t* group, int64_t k, const uint8_t* activations, float* out, size_t stride) {
    constexpr Format f = *kFormats[format];
    constexpr int parts = kRows / Simd::kLanes;
    const GroupLayout layout(f, k);
    const uint8_t *quants = group + layout.quants, *share = quants;
    typename Simd::Floats sum[parts][n];
    for (int p = 0; p < parts; ++p)
        SPECX_UNROLL
        for (int t = 0; t < n; ++t) sum[p][t] = Simd::zero();

    for (int64_t header = 0; header < layout.blocks / f.blocks; ++header) {
        Scales<format> scales;
        scales.template read<Simd>(group + header * f.header_group_bytes());
        for (int block = 0; block < f.blocks; ++block) {
            prefetch<format>(share);
            share += kBlockShare<format>;
            SPECX_NO_UNROLL  // the sums of several parts would not fit into the registers
            for (int p = 0; p < parts; ++p) {
                // Hides that every part reads the same activations: kept for the next one they would not fit, either. GCC
                // sees through all but `volatile`, and keeps them on the stack: good for one or two tokens, which wait
                // for memory, and a third slower for more.
                const uint8_t* x = activations;
                if constexpr (parts > 1 && n > 2)
                    __asm__ volatile("" : "+r"(x));
                else
                    __asm__("" : "+r"(x));
                const Columns<Simd, format, (n > Simd::together(f, n))> w(quants + p * Simd::kLanes * 4);
                accumulate_all<Simd, format, n, 0>(sum[p], w, scales, block, p * Simd::kLanes, x);
            }
            quants += f.block_bytes();
            activations += n * activation_bytes(f);
        }
    }
    for (int p = 0; p < parts; ++p)
        SPECX_UNROLL
        for (int t = 0; t < n; ++t) Simd::store(out + t * stride + p * Simd::kLanes, sum[p][t]);
}

}  // namespace
}  // namespace specx
