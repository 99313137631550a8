// Attention of a few query rows over a long cache: softmax(scale * Q K^T + mask) V.
//
// The cells of the cache are cut into tiles of 64 at fixed places. The K of a tile is transposed once for all heads of
// a group and all rows (Ainslie et al., "GQA", 2023), each row keeps its own maximum and sum for a tile, and a row's
// tiles are folded together in their order (the online softmax of Milakov and Gimelshein, 2018, as in FlashAttention).
// A tile in which a row sees no cell is skipped for that row. So a row's result depends on its own query, its own mask
// and the cells, never on the other rows, on how many there are, or on the number of threads: the bits are the same
// at every width. All arithmetic is in 32-bit floats, in the same order on every instruction set: the bits are the
// same there, too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"
#include "threads.hpp"

namespace specx {

// One attention operation, in ggml's terms. Strides are in bytes; every row (one head's query, one cell's key)
// is contiguous. Plain data: the tests fill it from Python.
struct Attention {
    const void* q;       // float32 [streams][heads][rows][k_size]
    const void* k;       // type_k  [streams][kv_heads][cells][k_size]
    const void* v;       // type_v  [streams][kv_heads][cells][v_size]
    const void* mask;    // float16 [mask_streams][mask_heads][rows][cells], added to the logits; or null
    const float* sinks;  // float32 [heads], a logit without a value for each head; or null
    void* dst;           // float32 [streams][rows][heads][v_size]
    int64_t type_k, type_v;
    int64_t k_size, v_size;
    int64_t rows, heads, kv_heads, cells, streams;
    int64_t mask_heads, mask_streams;  // repeat over the heads and streams
    int64_t q_row, q_head, q_stream;
    int64_t k_cell, k_head, k_stream;
    int64_t v_cell, v_head, v_stream;
    int64_t mask_row, mask_head, mask_stream;
    int64_t dst_head, dst_row, dst_stream;
    float scale;
    float max_bias;  // ALiBi: the mask is multiplied by a slope for each head; 0 for none
    float softcap;   // logits become softcap * tanh(logits / softcap); 0 for none
};

// Whether the shapes and types are handled: K and V of float16 or Q8_0, sizes that are multiples of 16 (32
// for Q8_0) up to 1024, heads a multiple of kv_heads.
bool attention_supported(const Attention& op);

// Bytes of scratch memory, to be aligned to 64 bytes, for a team of `threads`.
size_t attention_scratch_size(const Attention& op, int threads);

// Called by all `size` members of a team at once. Needs no barrier before it; one is needed before `dst` is
// read or `scratch` used again.
void attention(Isa isa, const Attention& op, void* scratch, Team* team, int member, int size);

}  // namespace specx
