// The inner loops of attention, one set for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace specx {

constexpr int kTileCells = 64;  // cells of a tile: a row's results depend on it, nothing else may
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

struct AttentionKernels {
    // Convert `cells` (<= 64) cells to floats: `keys` [k_size][64] transposed, with zeros up to the next multiple
    // of 16 cells, and `values` [64][v_size]. `rows` is scratch for 16 * k_size floats.
    void (*load_keys)(int64_t type, const char* source, int64_t stride, int cells, int64_t k_size, float* rows,
                      float* keys);
    void (*load_values)(int64_t type, const char* source, int64_t stride, int cells, int64_t v_size, float* values);

    // How many of the `cells` float16 values are left without the last ones that are -infinity.
    int (*visible_cells)(const uint16_t* mask, int cells);

    // Attention of `n` (<= 6) rows over the first `cells` of one loaded tile: cells that a row does not see do not
    // change its result, whether they are computed or not. q[i]: k_size floats; mask[i]: `cells` float16 values or
    // null; slope[i] multiplies them; value[i]: v_size floats, set with state[i].
    void (*rows)(int n, const float* const* q, const float* keys, const float* values, int64_t k_size,
                 int64_t v_size, int cells, const uint16_t* const* mask, const float* slope, Logits logits,
                 float* const* value, RowState* const* state);

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
