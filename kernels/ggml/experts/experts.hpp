// Multiplication with the matrices of experts (the layers called mixture of experts), a few of which each token has:
//
//   out[token][slot][row] = sum over k of w[expert][row][k] * x[token][slot % x_slots][k]
//   expert = ids[token][slot]
//
// Activations are quantized once, however many experts they go to, and an expert's weights are read once for
// all the tokens that chose it (up to 32 at a time). As in matmul.hpp, a result does not depend on what else is in
// the batch or on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.hpp"

namespace specx {

// Strides are in bytes.
struct Experts {
    int type;  // ggml's number; matmul_supported(type, k, rows)
    int64_t k, rows, count;
    const void* packed;  // `count` matrices as pack() makes them, one after the other
    int64_t tokens, slots;
    const void* x;  // float [tokens][x_slots][k]; x_slots is 1 or `slots`, or divides it
    int64_t x_slots;
    size_t x_token, x_slot;
    const void* ids;  // int32 [tokens][slots]; a slot with an id out of range is left as it was
    size_t ids_token, ids_slot;
    void* out;  // float [tokens][slots][rows]
    size_t out_token, out_slot;
};

// Bytes of scratch memory, aligned to kAlignment, for a team of up to `threads`.
size_t experts_scratch_size(const Experts& experts, int threads);

// Called by all members of a team; the results are there after the next barrier. The weights of a second call may be
// multiplied with what the first one prepared, if all but `packed` and `out` is the same: call with `prepare` = true,
// then, with nothing in between, once with false.
void multiply_experts(const Experts& experts, bool prepare, void* scratch, Team* team, int member, int size);

}  // namespace specx
