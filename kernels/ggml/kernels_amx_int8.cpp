// Kernels for AMX: tiles of up to 16 tokens times 16 rows in one instruction. For few tokens AVX-512 is faster, and
// this file's table holds those kernels there. The integers are the same, and so are the float operations on them.
#include "kernels.hpp"

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <algorithm>

#include "simd_avx512.hpp"

namespace specx {
namespace {

// From how many tokens on (found by measurement). More floats to add up for each product leave less to gain: a minimum
// for each block; two scales, as in Q6_K, so much less that it is never worth it.
constexpr int fewest(const Format& f) {
    if (f.scale == Scale::d_int8) return kMaxTile + 1;
    return std::min(f.has_minimum() ? 13 : 9, kMaxTile);
}

// Tile registers: two of activations (n rows of 32 bytes), two of weights (8 columns), and the sums (n rows of 16) of
// the products under way.
constexpr int kActivations = 0, kWeights = 2, kSums = 4, kTurns = 4;

struct alignas(64) TileShapes {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int tile_rows, int bytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileShapes) == 64, "the processor's format");

// The shapes of the tile registers while this lives. What was set before comes back: ggml sets its own once a thread.
class ShapedTiles {
  public:
    explicit ShapedTiles(const TileShapes& shapes) {
        __asm__ volatile("sttilecfg %0" : "=m"(before_));
        __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    }
    ~ShapedTiles() {
        if (before_.palette == 0)
            __asm__ volatile("tilerelease");
        else
            __asm__ volatile("ldtilecfg %0" : : "m"(before_));
    }
    ShapedTiles(const ShapedTiles&) = delete;
    ShapedTiles& operator=(const ShapedTiles&) = delete;

  private:
    TileShapes before_;
};

// Plain assembly: the compiler's intrinsics do not tell it which memory they read and write.
template <int product>
SPECX_INLINE void multiply_tiles(const uint8_t* x, const uint8_t* w) {
    __asm__ volatile(
        "tileloadd (%0,%2,1), %%tmm%c4\n\t"
        "tileloadd (%1,%3,1), %%tmm%c5\n\t"
        "tilezero %%tmm%c6\n\t"
        "tdpbssd %%tmm%c5, %%tmm%c4, %%tmm%c6"
        :
        : "r"(x), "r"(w), "r"(static_cast<size_t>(kBlock)), "r"(kColumnBytes), "i"(kActivations + product % 2),
          "i"(kWeights + product % 2), "i"(kSums + product)
        : "memory");
}

template <int product>
SPECX_INLINE void store_tile(int32_t* out) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(out), "r"(kColumnBytes), "i"(kSums + product)
                     : "memory");
}

// Weights as signed bytes, less their zero.
template <int format, int c>
SPECX_INLINE __m512i signed_column(const uint8_t* planes) {
    constexpr Format f = *kFormats[format];
    const __m512i w = column<Avx512, format, c>(planes);
    if constexpr (f.is_signed) return Avx512::offset(w);  // undoes what column() did
    return f.zero == 0 ? w : _mm512_sub_epi8(w, _mm512_set1_epi8(f.zero));
}

// The stages of one block. Each takes long, so they are those of different blocks at any time: `i` is the block's
// number modulo kTurns, which says where its values are.
template <int format, int n>
struct AmxTile {
    static constexpr Format f = *kFormats[format];
    static constexpr size_t kActivationBytes = n * activation_bytes(f);

    alignas(64) uint8_t weights[kTurns][kBlock * kRows];
    alignas(64) int32_t sums[kTurns][n][kRows];

    static TileShapes shapes() {
        TileShapes shapes;
        shapes.palette = 1;
        for (int i = 0; i < 2; ++i) {
            shapes.set(kActivations + i, n, kBlock);
            shapes.set(kWeights + i, kColumns, static_cast<int>(kColumnBytes));
        }
        for (int i = 0; i < kTurns; ++i) shapes.set(kSums + i, n, 4 * kRows);
        return shapes;
    }

    template <int i>
    SPECX_INLINE void decode(const uint8_t* quants) {
        prefetch<format>(quants);
        if constexpr (f.low != Plane::bytes)
            each<0, kColumns>([&](auto c) SPECX_INLINE_LAMBDA {
                _mm512_store_si512(weights[i] + c * kColumnBytes, signed_column<format, c>(quants));
            });
    }

    template <int i>
    SPECX_INLINE void multiply(const uint8_t* quants, const uint8_t* x) const {
        multiply_tiles<i>(x, f.low == Plane::bytes ? quants : weights[i]);
    }

    template <int i>
    SPECX_INLINE void store() {
        store_tile<i>(sums[i][0]);
    }

    // As accumulate() in tile.hpp.
    template <int i>
    SPECX_INLINE void add(__m512* total, const Scales<format>& scales, int64_t block, const uint8_t* x) const {
        const uint8_t* d = x + n * kBlock;
        const __m512 scale = _mm512_load_ps(scales.d[block]);
        SPECX_UNROLL
        for (int t = 0; t < n; ++t) {
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[i][t])), scale);
            total[t] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(load_as<float>(d + 4 * t)), total[t]);
            if constexpr (f.has_minimum())
                total[t] = _mm512_fmadd_ps(_mm512_load_ps(scales.minimum[block]),
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
    const TileShapes shapes = Tile::shapes();
    const ShapedTiles shaped(shapes);
    Tile tile;
    Scales<format> scales;
    __m512 total[n];
    SPECX_UNROLL
    for (int t = 0; t < n; ++t) total[t] = _mm512_setzero_ps();

    const auto exists = [&](int64_t block) SPECX_INLINE_LAMBDA { return block >= 0 && block < layout.blocks; };
    for (int64_t first = -kTurns; first < layout.blocks + until_added; first += kTurns)
        each<0, kTurns>([&](auto i) SPECX_INLINE_LAMBDA {
            const int64_t block = first + i, stored = block - until_stored, added = block - until_added;
            if (exists(block))
                tile.template multiply<i>(quants + block * block_bytes, activations + block * Tile::kActivationBytes);
            if (exists(stored)) tile.template store<(i + kTurns - until_stored) % kTurns>();
            if (exists(block + ahead))
                tile.template decode<(i + ahead) % kTurns>(quants + (block + ahead) * block_bytes);
            if (!exists(added)) return;
            if (added % per_header == 0) scales.template read<Avx512>(group + added / per_header * header_bytes);
            tile.template add<(i + kTurns - until_added) % kTurns>(total, scales, added % per_header,
                                                                   activations + added * Tile::kActivationBytes);
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
