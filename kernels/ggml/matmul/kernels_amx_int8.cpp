// Kernels for AMX: tiles of up to 16 tokens times 16 rows in one instruction. For few tokens AVX-512 is faster, and
// this file's table holds those kernels there. The integers are the same, and so are the float operations on them.
#include "kernels.hpp"

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <algorithm>

#include "simd_avx512.hpp"

namespace specx {
namespace {

// From how many tokens on (found by measurement, with weights that come from memory). Where weights need not be decoded
// it pays earlier; two scales, as in Q6_K, leave so little to gain that it is never worth it.
constexpr int fewest(const Format& f) {
    if (f.scale == Scale::d_int8) return kMaxTile + 1;
    return std::min(f.low == Plane::bytes ? 8 : 12, kMaxTile);
}

// Tile registers: two of activations (n rows of 32 bytes), two of weights (8 columns), and the sums (n rows of 16) of
// the two products under way.
constexpr int kActivations = 0, kWeights = 2, kSums = 4;
constexpr uint64_t kRing = 4;  // blocks whose decoded weights, and whose sums, are kept

// What sums start from, for up to 16 tokens. That makes them floats that need no conversion (kFloatBits).
struct alignas(64) Start {
    int32_t at[16][kRows] = {};

    constexpr Start() {
        for (auto& row : at)
            for (int32_t& sum : row) sum = kFloatBits;
    }
};
constexpr Start kStart;

struct alignas(64) TileShapes {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr void set(int tile, int tile_rows, int bytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileShapes) == 64, "the processor's format");

// For n tokens.
constexpr TileShapes shapes_for(int n) {
    TileShapes shapes;
    shapes.palette = 1;
    for (int i = 0; i < 2; ++i) {
        shapes.set(kActivations + i, n, kBlock);
        shapes.set(kWeights + i, kColumns, static_cast<int>(kColumnBytes));
        shapes.set(kSums + i, n, 4 * kRows);
    }
    return shapes;
}

// The shapes of a thread's tile registers stay from one kernel to the next: setting them takes as long as two to three
// blocks. At the end of a multiplication those of before come back: ggml sets its own once a thread.
struct ThreadTiles {
    const TileShapes* now = nullptr;  // null outside of a multiplication
    TileShapes before;
};
thread_local ThreadTiles thread_tiles;

template <int n>
void shape_tiles() {
    static constexpr TileShapes shapes = shapes_for(n);
    if (thread_tiles.now == &shapes) return;
    if (!thread_tiles.now) __asm__ volatile("sttilecfg %0" : "=m"(thread_tiles.before));
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    thread_tiles.now = &shapes;
}

void leave_tiles() {
    if (!thread_tiles.now) return;
    if (thread_tiles.before.palette == 0)
        __asm__ volatile("tilerelease");
    else
        __asm__ volatile("ldtilecfg %0" : : "m"(thread_tiles.before));
    thread_tiles.now = nullptr;
}

// Plain assembly: the compiler's intrinsics do not tell it which memory they read and write.
template <int product>
SPECX_INLINE void multiply_tiles(const uint8_t* x, const uint8_t* w) {
    __asm__ volatile(
        "tileloadd (%0,%2,1), %%tmm%c4\n\t"
        "tileloadd (%1,%3,1), %%tmm%c5\n\t"
        "tileloadd (%7,%3,1), %%tmm%c6\n\t"
        "tdpbssd %%tmm%c5, %%tmm%c4, %%tmm%c6"
        :
        : "r"(x), "r"(w), "r"(static_cast<size_t>(kBlock)), "r"(kColumnBytes), "i"(kActivations + product),
          "i"(kWeights + product), "i"(kSums + product), "r"(kStart.at)
        : "memory");
}

template <int product>
SPECX_INLINE void store_tile(int32_t* out) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(out), "r"(kColumnBytes), "i"(kSums + product)
                     : "memory");
}

// Whether weights are decoded to sixteen times their value: nibbles stay in, or go to, the upper half of a byte, and one
// operation does the rest, the 8 that is subtracted included. The scale takes the sixteen away without rounding.
template <int format>
constexpr bool kSixteenfold = kFormats[format]->low == Plane::nibbles && kFormats[format]->high == Plane::none &&
                              kFormats[format]->zero == 8 && !kFormats[format]->is_signed;

// Weights as signed bytes, less their zero.
template <int format, int c>
SPECX_INLINE __m512i signed_column(const uint8_t* planes) {
    constexpr Format f = *kFormats[format];
    if constexpr (kSixteenfold<format>) {
        const __m512i both = _mm512_load_si512(planes + c % 4 * kColumnBytes);
        return _mm512_ternarylogic_epi32(c < 4 ? _mm512_slli_epi16(both, 4) : both, _mm512_set1_epi8(-16),
                                         _mm512_set1_epi8(-128), 0x6a);  // (a & b) ^ c
    }
    const __m512i w = column<Avx512, format, c>(planes);
    if constexpr (f.is_signed) return Avx512::offset(w);  // undoes what column() did
    return f.zero == 0 ? w : _mm512_sub_epi8(w, _mm512_set1_epi8(f.zero));
}

// The stages of one block. Each takes long, so they are those of different blocks at any time, and what they leave to
// each other lies in rings.
template <int format, int n>
struct AmxTile {
    static constexpr Format f = *kFormats[format];
    static constexpr size_t kActivationBytes = n * activation_bytes(f);
    static constexpr bool kDecodes = f.low != Plane::bytes;

    alignas(64) uint8_t weights[kRing][kBlock * kRows];
    alignas(64) int32_t sums[kRing][n][kRows];

    SPECX_INLINE void decode(int64_t block, const uint8_t* quants) {
        prefetch<format>(quants + block * static_cast<int64_t>(kBlockShare<format> - f.block_bytes()));
        if constexpr (kDecodes)
            each<0, kColumns>([&](auto c) SPECX_INLINE_LAMBDA {
                _mm512_store_si512(weights[block % kRing] + c * kColumnBytes, signed_column<format, c>(quants));
            });
    }

    template <int i>
    SPECX_INLINE void multiply(int64_t block, const uint8_t* quants, const uint8_t* x) const {
        multiply_tiles<i>(x, kDecodes ? weights[block % kRing] : quants);
    }

    template <int i>
    SPECX_INLINE void store(int64_t block) {
        store_tile<i>(sums[block % kRing][0]);
    }

    // As accumulate() in tile.hpp.
    SPECX_INLINE void add(int64_t block, __m512* total, const Scales<format>& scales, int64_t of_header,
                          const uint8_t* x) const {
        constexpr float unit = kSixteenfold<format> ? 1.0f / 16 : 1.0f;
        const auto* sum = sums[block % kRing];
        const uint8_t* d = x + n * kBlock;
        const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales.d[of_header]), _mm512_set1_ps(unit));
        const __m512 less = _mm512_mul_ps(scale, _mm512_set1_ps(-kFloat));
        SPECX_UNROLL
        for (int t = 0; t < n; ++t) {
            const __m512 scaled = _mm512_fmadd_ps(_mm512_load_ps(sum[t]), scale, less);
            total[t] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(load_as<float>(d + 4 * t)), total[t]);
            if constexpr (f.has_minimum())
                total[t] = _mm512_fmadd_ps(_mm512_load_ps(scales.minimum[of_header]),
                                           _mm512_set1_ps(load_as<float>(d + 4 * (n + t))), total[t]);
        }
    }
};

template <int format, int n>
void multiply_amx(const uint8_t* group, int64_t k, const uint8_t* activations, float* out, size_t stride) {
    using Tile = AmxTile<format, n>;
    constexpr int64_t per_header = Tile::f.blocks;
    constexpr size_t header_bytes = Tile::f.header_group_bytes(), block_bytes = Tile::f.block_bytes();
    // In blocks: a sum is stored two after its product was begun, when it is ready, and added up one later.
    constexpr int ahead = 2, until_stored = 2, until_added = 3;
    const GroupLayout layout(Tile::f, k);
    const uint8_t* quants = group + layout.quants;
    shape_tiles<n>();
    Tile tile;
    Scales<format> scales;
    __m512 total[n];
    SPECX_UNROLL
    for (int t = 0; t < n; ++t) total[t] = _mm512_setzero_ps();

    // Beyond the end the last block is decoded and multiplied again, and before the beginning registers are stored that
    // hold nothing yet. None of that is added up, and it takes less time, and code, than to ask in each stage.
    const int64_t last = layout.blocks - 1;
    for (int64_t block = 0; block < ahead; ++block) tile.decode(block, quants + std::min(block, last) * block_bytes);
    for (int64_t first = 0; first <= last + until_added; first += 2)
        each<0, 2>([&](auto i) SPECX_INLINE_LAMBDA {
            const int64_t block = first + i, added = block - until_added, now = std::min(block, last);
            tile.template store<i>(block - until_stored);
            tile.template multiply<i>(block, quants + now * block_bytes, activations + now * Tile::kActivationBytes);
            tile.decode(block + ahead, quants + std::min(block + ahead, last) * block_bytes);
            if (added < 0 || added > last) return;
            if (added % per_header == 0) scales.template read<Avx512>(group + added / per_header * header_bytes);
            tile.add(added, total, scales, added % per_header, activations + added * Tile::kActivationBytes);
        });
    SPECX_UNROLL
    for (int t = 0; t < n; ++t) _mm512_storeu_ps(out + t * stride, total[t]);
}

template <int format, int... i>
void use_amx(Kernels& kernels, std::integer_sequence<int, i...>) {
    constexpr int first = fewest(*kFormats[format]);
    ((kernels.tile[format][first - 1 + i] = multiply_amx<format, first + i>), ...);
}

template <int... format>
Kernels make_amx(std::integer_sequence<int, format...>) {
    Kernels kernels = *avx512_vnni_kernels();
    kernels.leave = leave_tiles;
    (use_amx<format>(kernels, std::make_integer_sequence<int, kMaxTile + 1 - fewest(*kFormats[format])>()), ...);
    return kernels;
}

}  // namespace

const Kernels* amx_int8_kernels() {
    static const Kernels kernels = make_amx(std::make_integer_sequence<int, kFormatCount>());
    return &kernels;
}

}  // namespace specx
#else
namespace specx {
const Kernels* amx_int8_kernels() { return nullptr; }
}  // namespace specx
#endif
