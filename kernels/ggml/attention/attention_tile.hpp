// The inner loops of attention, one set for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace specx {

constexpr int kTileCells = 64;  // cells of a tile: a row's results depend on it, nothing else may
constexpr uint16_t kHidden = 0xFC00;  // in a mask: minus infinity as a float16, for a cell that a row does not see
constexpr int kRowGroup = 6;    // rows computed together: fills the registers of every instruction set

// The state of one row's softmax after some cells: the result is value / sum.
struct RowState {
    float maximum;  // -infinity: no cell seen yet, `sum` and the value are not set
    float sum;
};

// What happens to a logit on its way to the softmax.
struct Logits {
    float scale;
    float softcap;  // 0: none
};

// Stretches of the cache that will be wanted next: while other things are computed they are brought nearer, as much at
// a time as is read in that time. Processors do not foresee it, as the cells of a head do not lie side by side.
struct Fetcher {
    struct Stretch {
        const char* start;
        int64_t bytes;
    };
    Stretch now, then;
};

// The keys of a tile, transposed: [k_size][64] of float16, of int8 (type Q8_0) or of floats (type 0).
struct Keys {
    int64_t type;
    void* start;
    float* scales;  // [k_size / 32][64], of int8
};

// The values of a tile: floats made by `widen_values` (type 0), or the cells of the cache as they are.
struct Values {
    int64_t type;
    const void* start;
    int64_t stride;  // bytes from cell to cell; of the cache
};

struct AttentionKernels {
    // Transpose `cells` (<= 64) cells to `keys`, with zeros up to the next multiple of 16 cells.
    void (*load_keys)(int64_t type, const char* source, int64_t stride, int cells, int64_t k_size, const Keys& keys);
    // Convert keys and values of Q8_0 to floats, [k_size][64] and [cells][v_size].
    void (*widen_keys)(const Keys& keys, int cells, int64_t k_size, float* floats);
    void (*widen_values)(const Values& values, int cells, int64_t v_size, float* floats);

    // How many of the `cells` float16 values are left without the last ones that are -infinity.
    int (*visible_cells)(const uint16_t* mask, int cells);
    // The first of `cells` float16 values that is -infinity with others before it and at least one, and at most 64,
    // after it; -1 if there is none.
    int64_t (*last_holes)(const uint16_t* mask, int64_t cells);

    // Attention of `n` (<= 6) rows over the first `cells` of one loaded tile: cells that a row does not see do not
    // change its result, whether they are computed or not. q[i]: k_size floats; mask[i]: `cells` float16 values or
    // null; slope[i] multiplies them; value[i]: v_size floats, set with state[i].
    void (*rows)(int n, const float* const* q, const Keys& keys, const Values& values, int64_t k_size,
                 int64_t v_size, int cells, const uint16_t* const* mask, const float* slope, Logits logits,
                 float* const* value, RowState* const* state, Fetcher* fetcher);

    // Fold the state of later cells into `state`, in the order of the cells.
    void (*fold)(int64_t v_size, RowState* state, float* value, RowState later, const float* later_value);

    // Multiply by 1 / sum into `out`; zeros for a row that saw no cell.
    void (*finish)(int64_t v_size, RowState state, const float* value, float* out);
};

// Each is null where the build's target lacks the instruction set.
const AttentionKernels* attention_kernels_generic();
const AttentionKernels* attention_kernels_avx2();
const AttentionKernels* attention_kernels_avx512();
const AttentionKernels* attention_kernels_neon();

}  // namespace specx
