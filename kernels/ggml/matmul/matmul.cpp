#include "matmul.hpp"

#include <algorithm>
#include <cstring>

#include "kernels.hpp"
#include "pack.hpp"

namespace specx {
namespace {

// Quantized activations that the groups of a matrix go over again and again must stay in the L2 cache, beside a
// group of weights.
constexpr size_t kCachedActivations = size_t{1} << 20;

const Format& format_of(int type) { return *kFormats[format_index(type)]; }

// n tokens in as few tiles as possible, of sizes as equal as possible: the kernels need not be of the largest size to
// be fast, but a tile of one token costs as much memory traffic as any.
struct Tiles {
    int64_t count, small, larger;  // the first `larger` tiles have one token more than `small`

    Tiles(int64_t n, int max_tile)
        : count((n + max_tile - 1) / max_tile), small(n / count), larger(n % count) {}

    int64_t first(int64_t tile) const { return tile * small + std::min(tile, larger); }
    int size(int64_t tile) const { return static_cast<int>(small + (tile < larger)); }
};

// Part ith of nth of `count` things: begin and end.
struct Part {
    int64_t begin, end;
    Part(int64_t count, int ith, int nth) : begin(count * ith / nth), end(count * (ith + 1) / nth) {}
};

// All tiles of one group. The last group of a matrix may have fewer rows than its kernel computes.
void multiply_group(const Kernels& kernels, int index, int64_t k, int rows, const uint8_t* group, const Tiles& tiles,
                    Part range, const uint8_t* scratch, float* out, size_t stride) {
    const size_t token_bytes = static_cast<size_t>(k / kBlock) * activation_bytes(*kFormats[index]);
    for (int64_t tile = range.begin; tile < range.end; ++tile) {
        const int64_t first = tiles.first(tile);
        const int n = tiles.size(tile);
        const uint8_t* activations = scratch + static_cast<size_t>(first) * token_bytes;
        const TileKernel kernel = kernels.tile[index][n - 1];
        if (rows == kRows) {
            kernel(group, k, activations, out + first * stride, stride);
            continue;
        }
        alignas(kAlignment) float whole[kMaxTile * kRows];
        kernel(group, k, activations, whole, kRows);
        for (int t = 0; t < n; ++t)
            std::memcpy(out + (first + t) * stride, whole + t * kRows, static_cast<size_t>(rows) * sizeof(float));
    }
}

// Groups of 16 rows, all tiles of tokens.
void multiply_range(Isa isa, int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch,
                    float* out, size_t out_stride_bytes, int64_t first_group, int64_t last_group) {
    const Kernels& kernels = *kernels_of(isa);
    const int index = format_index(type);
    const GroupLayout layout(*kFormats[index], k);
    const Tiles tiles(n, kernels.max_tile);
    const size_t tile_bytes = scratch_size(type, k, tiles.small + 1);
    const int64_t at_once = std::max<int64_t>(1, static_cast<int64_t>(kCachedActivations / tile_bytes));
    for (int64_t tile = 0; tile < tiles.count; tile += at_once)
        for (int64_t g = first_group; g < last_group; ++g) {
            Part range(0, 0, 1);
            range.begin = tile;
            range.end = std::min(tile + at_once, tiles.count);
            multiply_group(kernels, index, k, static_cast<int>(std::min<int64_t>(kRows, rows - g * kRows)),
                           static_cast<const uint8_t*>(packed) + static_cast<size_t>(g) * layout.group_bytes, tiles,
                           range, static_cast<const uint8_t*>(scratch), out + g * kRows,
                           out_stride_bytes / sizeof(float));
        }
    if (kernels.leave) kernels.leave();
}

// Blocks [begin, end) of a tile.
void quantize_part(const Kernels& kernels, int type, int64_t k, const Tiles& tiles, int64_t tile, const float* x,
                   size_t row_stride_bytes, void* scratch, int64_t begin, int64_t end) {
    const int index = format_index(type);
    const size_t token_bytes = static_cast<size_t>(k / kBlock) * activation_bytes(*kFormats[index]);
    const auto first = static_cast<size_t>(tiles.first(tile));
    kernels.quantize[index](reinterpret_cast<const uint8_t*>(x) + first * row_stride_bytes, row_stride_bytes,
                            tiles.size(tile), begin, end, static_cast<uint8_t*>(scratch) + first * token_bytes);
}

}  // namespace

bool matmul_supported(int type, int64_t k, int64_t rows) {
    const int index = format_index(type);
    return index >= 0 && k > 0 && rows > 0 && k % (kFormats[index]->blocks * kBlock) == 0;
}

size_t packed_size(int type, int64_t k, int64_t rows) {
    return GroupLayout(format_of(type), k).group_bytes * static_cast<size_t>((rows + kRows - 1) / kRows);
}

void pack(int type, int64_t k, int64_t rows, const void* src, void* dst, int64_t first_row, int64_t n_rows) {
    const Format& f = format_of(type);
    const GroupLayout layout(f, k);
    const size_t row_bytes = static_cast<size_t>(layout.blocks / f.blocks) * f.source_bytes;
    const int64_t last = std::min(first_row + n_rows, rows);
    for (int64_t row = first_row; row < last; row += kRows)
        pack_group(f, k, static_cast<int>(std::min<int64_t>(kRows, last - row)),
                   static_cast<const uint8_t*>(src) + static_cast<size_t>(row - first_row) * row_bytes,
                   static_cast<uint8_t*>(dst) + static_cast<size_t>(row / kRows) * layout.group_bytes);
}

void unpack(int type, int64_t k, int64_t rows, const void* src, void* dst, int64_t first_row, int64_t n_rows) {
    const Format& f = format_of(type);
    const GroupLayout layout(f, k);
    const size_t row_bytes = static_cast<size_t>(layout.blocks / f.blocks) * f.source_bytes;
    const int64_t last = std::min(first_row + n_rows, rows);
    for (int64_t row = first_row; row < last; row += kRows)
        unpack_group(f, k, static_cast<int>(std::min<int64_t>(kRows, last - row)),
                     static_cast<const uint8_t*>(src) + static_cast<size_t>(row / kRows) * layout.group_bytes,
                     static_cast<uint8_t*>(dst) + static_cast<size_t>(row - first_row) * row_bytes);
}

size_t scratch_size(int type, int64_t k, int64_t n) {
    return round_up(static_cast<size_t>(n * (k / kBlock)) * activation_bytes(format_of(type)));
}

void quantize_rows(Isa isa, int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes,
                   void* scratch, int ith, int nth) {
    const Kernels& kernels = *kernels_of(isa);
    const int64_t blocks = k / kBlock;
    const Tiles tiles(n, kernels.max_tile);
    // By blocks, not by tokens: two threads must not write to the same cache lines, and one token is shared, too.
    const Part part(tiles.count * blocks, ith, nth);
    for (int64_t next = part.begin; next < part.end;) {
        const int64_t tile = next / blocks, end = std::min((tile + 1) * blocks, part.end);
        quantize_part(kernels, type, k, tiles, tile, x, row_stride_bytes, scratch, next - tile * blocks,
                      end - tile * blocks);
        next = end;
    }
}

void quantize_blocks(int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes, void* scratch,
                     int64_t first_block, int64_t last_block) {
    const Kernels& kernels = *kernels_of(best_isa());
    const Tiles tiles(n, kernels.max_tile);
    for (int64_t tile = 0; tile < tiles.count; ++tile)
        quantize_part(kernels, type, k, tiles, tile, x, row_stride_bytes, scratch, first_block, last_block);
}

void join_rows(Isa isa, int type, int64_t k, int64_t n, const void* const* rows, void* scratch) {
    const Tiles tiles(n, kernels_of(isa)->max_tile);
    const size_t block_bytes = activation_bytes(format_of(type));
    const int64_t blocks = k / kBlock;
    uint8_t* block = static_cast<uint8_t*>(scratch);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int size = tiles.size(tile);
        for (int64_t b = 0; b < blocks; ++b, block += size * block_bytes)
            for (int t = 0; t < size; ++t) {
                const uint8_t* from = static_cast<const uint8_t*>(rows[tiles.first(tile) + t]) + b * block_bytes;
                std::memcpy(block + t * kBlock, from, kBlock);
                for (size_t at = kBlock; at < block_bytes; at += 4)  // the scale, and each of what `extra` is
                    std::memcpy(block + size * at + 4 * t, from + at, 4);
            }
    }
}

void multiply(Isa isa, int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch,
              float* out, size_t out_stride_bytes, int ith, int nth) {
    const Part groups((rows + kRows - 1) / kRows, ith, nth);
    multiply_range(isa, type, k, rows, n, packed, scratch, out, out_stride_bytes, groups.begin, groups.end);
}

void multiply_groups(int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch, float* out,
                     size_t out_stride_bytes, int64_t first_group, int64_t last_group) {
    multiply_range(best_isa(), type, k, rows, n, packed, scratch, out, out_stride_bytes, first_group, last_group);
}

void quantize_rows(int type, int64_t k, int64_t n, const float* x, size_t row_stride_bytes, void* scratch,
                   int ith, int nth) {
    quantize_rows(best_isa(), type, k, n, x, row_stride_bytes, scratch, ith, nth);
}

void join_rows(int type, int64_t k, int64_t n, const void* const* rows, void* scratch) {
    join_rows(best_isa(), type, k, n, rows, scratch);
}

void multiply(int type, int64_t k, int64_t rows, int64_t n, const void* packed, const void* scratch, float* out,
              size_t out_stride_bytes, int ith, int nth) {
    multiply(best_isa(), type, k, rows, n, packed, scratch, out, out_stride_bytes, ith, nth);
}

}  // namespace specx
