// Attention on every instruction set by teams of one and three: the same bits in any team, alone and everywhere.
#include "attention.hpp"

#include <cmath>

#include "check.hpp"

namespace {

using namespace specx;

constexpr int64_t kF16 = 1, kQ8_0 = 8;  // ggml's numbers

struct Case {
    int64_t type, size, rows, heads, kv_heads, cells, streams;
    bool masked, sinks;
    float max_bias, softcap;
};

// Rows of `size` values in the format of a cache.
void fill_cache(const Case& c, Buffer& cache) {
    for (size_t i = 0; i < cache.size() / 2; ++i) cache.halves()[i] = random_half();
    for (size_t block = 0; block < cache.size() && c.type == kQ8_0; block += 34)
        cache.halves()[block / 2] = 0x2000;  // a scale of 1/128
}

struct Job {
    Isa isa;
    const Attention* op;
    Buffer* scratch;
};

void compute(Isa isa, const Attention& op, int threads) {
    Buffer scratch(attention_scratch_size(op, threads));
    Job job = {isa, &op, &scratch};
    team_run(
        threads,
        [](void* argument, Team* team, int member, int size) {
            const Job& job = *static_cast<const Job*>(argument);
            attention(job.isa, *job.op, job.scratch->data(), team, member, size);
        },
        &job);
}

// The results for rows [first, rows).
Attention operation(const Case& c, Buffer& q, Buffer& k, Buffer& v, Buffer& mask, Buffer& sinks, Buffer& out,
                    int64_t first) {
    Attention op = {};
    const int64_t row = c.size * 4, cell = c.type == kF16 ? c.size * 2 : c.size / 32 * 34;
    op.q = q.data() + first * row, op.k = k.data(), op.v = v.data(), op.dst = out.data();
    op.type_k = op.type_v = c.type, op.k_size = op.v_size = c.size;
    op.rows = c.rows - first, op.heads = c.heads, op.kv_heads = c.kv_heads, op.cells = c.cells, op.streams = c.streams;
    op.q_row = row, op.q_head = c.rows * row, op.q_stream = c.heads * c.rows * row;
    op.k_cell = op.v_cell = cell, op.k_head = op.v_head = c.cells * cell;
    op.k_stream = op.v_stream = c.kv_heads * c.cells * cell;
    op.dst_head = row, op.dst_row = c.heads * row, op.dst_stream = op.rows * c.heads * row;
    op.mask_heads = op.mask_streams = 1, op.mask_row = c.cells * 2;
    if (c.masked) op.mask = mask.data() + first * op.mask_row;
    if (c.sinks) op.sinks = sinks.floats();
    op.scale = 1.0f / std::sqrt(static_cast<float>(c.size)), op.max_bias = c.max_bias, op.softcap = c.softcap;
    return op;
}

bool check(const Case& c) {
    const int64_t cell = c.type == kF16 ? c.size * 2 : c.size / 32 * 34, out_row = c.heads * c.size * 4;
    Buffer q(c.streams * c.rows * out_row), k(c.streams * c.kv_heads * c.cells * cell), v(k.size());
    Buffer mask(c.rows * c.cells * 2), sinks(c.heads * 4), expected(q.size());
    for (size_t i = 0; i < q.size() / 4; ++i) q.floats()[i] = random_float();
    for (int64_t i = 0; i < c.heads; ++i) sinks.floats()[i] = random_float();
    for (size_t i = 0; i < mask.size() / 2; ++i) mask.halves()[i] = random_bits() >> 30 ? random_half() : 0xfc00;
    fill_cache(c, k), fill_cache(c, v);
    const auto run = [&](Isa isa, int threads, Buffer& out, int64_t first) {
        compute(isa, operation(c, q, k, v, mask, sinks, out, first), threads);
    };
    run(Isa::generic, 1, expected, 0);
    const auto agrees = [&](Isa isa) {
        Buffer one(q.size()), three(q.size()), last(c.streams * out_row);
        run(isa, 1, one, 0), run(isa, 3, three, 0), run(isa, 2, last, c.rows - 1);
        const size_t at = (c.rows - 1) * out_row;  // of the first stream
        if (!(one == three)) return failed("other bits on three threads: attention over type", c.type, isa);
        if (std::memcmp(last.data(), one.data() + at, out_row) != 0)
            return failed("other bits alone: attention over type", c.type, isa);
        return one == expected || failed("other bits than plain C++: attention over type", c.type, isa);
    };
    digest_of(expected);
    return agrees(Isa::generic) && on_every_other_isa(agrees);
}

}  // namespace

bool check_attention() {
    const Case cases[] = {
        {kF16, 48, 5, 6, 2, 130, 2, true, false, 0.0f, 0.0f},
        {kF16, 16, 1, 3, 3, 64, 1, false, true, 0.0f, 30.0f},
        {kQ8_0, 32, 7, 4, 1, 65, 1, true, true, 8.0f, 0.0f},
        {kF16, 64, 1, 9, 3, 200, 5, true, false, 0.0f, 0.0f},
        {kQ8_0, 64, 70, 2, 1, 70, 1, true, false, 0.0f, 0.0f},  // enough rows for each to go through all tiles
    };
    for (const Case& c : cases)
        if (!check(c)) return false;
    return true;
}
