#include "experts.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "matmul.hpp"

namespace specx {
namespace {

constexpr int64_t kBatch = 32;  // tokens an expert is multiplied with at once
constexpr int64_t kSlab = 64;   // rows whose results are computed before they are written where they belong
// Parts are handed out as threads become free. With so many for each thread none waits long for the last one.
constexpr int64_t kPartsPerThread = 16;
constexpr int64_t kReadingCost = 4;  // reading weights takes as long as multiplying them with about so many tokens

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t groups_of(const Experts& e) { return (e.rows + kGroupRows - 1) / kGroupRows; }

// Where things are in the scratch memory, in bytes. A "pair" is a token and one of its slots: token * slots + slot.
struct Layout {
    size_t end = 0;
    size_t next, begin, part, pairs, rows, own;
    size_t row_bytes, results_bytes, own_bytes;

    explicit Layout(const Experts& e)
        : next(take(2 * sizeof(std::atomic<int64_t>))),
          begin(take((e.count + 2) * sizeof(int64_t))),
          part(take((e.count + 1) * sizeof(int64_t))),
          pairs(take(e.tokens * e.slots * sizeof(int32_t))),
          rows(end),
          row_bytes(scratch_size(e.type, e.k, 1)),
          results_bytes(aligned(kBatch * kSlab * sizeof(float))),
          own_bytes(results_bytes + scratch_size(e.type, e.k, kBatch)) {
        own = end + e.tokens * e.x_slots * row_bytes;
    }

  private:
    size_t take(size_t bytes) {
        const size_t start = end;
        end += aligned(bytes);
        return start;
    }
};

// The same as pointers.
struct Scratch {
    std::atomic<int64_t>* next;  // [2] the next part to be handed out, of either call
    int64_t* begin;              // [count + 2] an expert's first pair in `pairs`
    int64_t* part;               // [count + 1] an expert's first part
    int32_t* pairs;              // [tokens * slots] ordered by expert
    char* rows;                  // [tokens * x_slots] activations, each quantized alone
    float* results;              // [kBatch][kSlab], this member's
    char* batch;                 // quantized activations of a batch, this member's
    size_t row_bytes;

    Scratch(const Layout& at, char* memory, int member)
        : next(reinterpret_cast<std::atomic<int64_t>*>(memory + at.next)),
          begin(reinterpret_cast<int64_t*>(memory + at.begin)),
          part(reinterpret_cast<int64_t*>(memory + at.part)),
          pairs(reinterpret_cast<int32_t*>(memory + at.pairs)),
          rows(memory + at.rows),
          results(reinterpret_cast<float*>(memory + at.own + member * at.own_bytes)),
          batch(memory + at.own + member * at.own_bytes + at.results_bytes),
          row_bytes(at.row_bytes) {}

    const void* row_of(const Experts& e, int32_t pair) const {
        const int64_t token = pair / e.slots, slot = pair % e.slots;
        return rows + (token * e.x_slots + slot % e.x_slots) * row_bytes;
    }
};

// Whole rows to each member, or where there are too few, a part of each row.
void quantize(const Experts& e, const Scratch& scratch, int member, int size) {
    const int64_t count = e.tokens * e.x_slots;
    const bool whole = count >= size;
    const int64_t first = whole ? count * member / size : 0;
    const int64_t last = whole ? count * (member + 1) / size : count;
    for (int64_t i = first; i < last; ++i) {
        const char* x = static_cast<const char*>(e.x) + i / e.x_slots * e.x_token + i % e.x_slots * e.x_slot;
        quantize_rows(e.type, e.k, 1, reinterpret_cast<const float*>(x), 0, scratch.rows + i * scratch.row_bytes,
                      whole ? 0 : member, whole ? 1 : size);
    }
}

int32_t id_of(const Experts& e, int64_t token, int64_t slot) {
    int32_t id;
    std::memcpy(&id, static_cast<const char*>(e.ids) + token * e.ids_token + slot * e.ids_slot, sizeof id);
    return id;
}

// Order the pairs by expert: a counting sort. Counts are kept two places on, so that after their sums have been
// used as places to write to, each is where it belongs.
void sort_pairs(const Experts& e, const Scratch& scratch) {
    int64_t* begin = scratch.begin;
    std::fill_n(begin, e.count + 2, 0);
    const auto each_pair = [&](auto visit) {
        for (int64_t token = 0; token < e.tokens; ++token)
            for (int64_t slot = 0; slot < e.slots; ++slot) {
                const int32_t id = id_of(e, token, slot);
                if (id >= 0 && id < e.count) visit(id, static_cast<int32_t>(token * e.slots + slot));
            }
    };
    each_pair([&](int32_t id, int32_t) { ++begin[id + 2]; });
    for (int64_t i = 2; i < e.count + 2; ++i) begin[i] += begin[i - 1];
    each_pair([&](int32_t id, int32_t pair) { scratch.pairs[begin[id + 1]++] = pair; });
}

// Cut each expert's rows into parts that take about equally long.
void plan_parts(const Experts& e, const Scratch& scratch, int size) {
    const auto cost = [&](int64_t expert) {
        const int64_t pairs = scratch.begin[expert + 1] - scratch.begin[expert];
        return pairs == 0 ? 0 : pairs + kReadingCost;
    };
    int64_t total = 0;
    for (int64_t i = 0; i < e.count; ++i) total += cost(i);
    scratch.part[0] = 0;
    for (int64_t i = 0; i < e.count; ++i) {
        const int64_t parts = cost(i) == 0 ? 0 : 1 + cost(i) * kPartsPerThread * size / total;
        scratch.part[i + 1] = scratch.part[i] + std::min(parts, groups_of(e));
    }
    for (int i = 0; i < 2; ++i) new (scratch.next + i) std::atomic<int64_t>(0);
}

// Rows [first, last) of a batch of n pairs; `x` is its quantized activations.
void multiply_rows(const Experts& e, const char* matrix, const int32_t* pairs, int64_t n, const void* x, int64_t first,
                   int64_t last, float* results) {
    const size_t group_bytes = packed_size(e.type, e.k, kGroupRows);
    const auto out = [&](int64_t i) {
        return reinterpret_cast<float*>(static_cast<char*>(e.out) + pairs[i] / e.slots * e.out_token +
                                        pairs[i] % e.slots * e.out_slot);
    };
    if (n == 1) {
        multiply(e.type, e.k, last - first, 1, matrix + first / kGroupRows * group_bytes, x, out(0) + first, 0, 0, 1);
        return;
    }
    for (int64_t row = first; row < last; row += kSlab) {
        const int64_t rows = std::min(kSlab, last - row);
        multiply(e.type, e.k, rows, n, matrix + row / kGroupRows * group_bytes, x, results, kSlab * sizeof(float), 0, 1);
        for (int64_t i = 0; i < n; ++i) std::memcpy(out(i) + row, results + i * kSlab, rows * sizeof(float));
    }
}

// Part `part` of all; `joined` is the expert whose activations are in scratch.batch, or -1.
void multiply_part(const Experts& e, const Scratch& scratch, int64_t part, int64_t* joined) {
    const int64_t expert = std::upper_bound(scratch.part, scratch.part + e.count + 1, part) - scratch.part - 1;
    const int64_t index = part - scratch.part[expert], parts = scratch.part[expert + 1] - scratch.part[expert];
    const int64_t first = groups_of(e) * index / parts * kGroupRows;
    const int64_t last = std::min(groups_of(e) * (index + 1) / parts * kGroupRows, e.rows);
    const int64_t begin = scratch.begin[expert], end = scratch.begin[expert + 1];
    const char* matrix = static_cast<const char*>(e.packed) + expert * packed_size(e.type, e.k, e.rows);
    for (int64_t i = begin; i < end; i += kBatch) {
        const int32_t* pairs = scratch.pairs + i;
        const int64_t n = std::min(kBatch, end - i);
        const void* x = scratch.row_of(e, pairs[0]);
        if (n > 1) {
            if (*joined != expert) {
                const void* rows[kBatch];
                for (int64_t j = 0; j < n; ++j) rows[j] = scratch.row_of(e, pairs[j]);
                join_rows(e.type, e.k, n, rows, scratch.batch);
                *joined = end - begin == n ? expert : -1;
            }
            x = scratch.batch;
        }
        multiply_rows(e, matrix, pairs, n, x, first, last, scratch.results);
    }
}

}  // namespace

size_t experts_scratch_size(const Experts& e, int threads) {
    const Layout at(e);
    return at.own + threads * at.own_bytes;
}

void multiply_experts(const Experts& e, bool prepare, void* memory, Team* team, int member, int size) {
    const Scratch scratch(Layout(e), static_cast<char*>(memory), member);
    if (prepare) {
        if (member == size - 1) {
            sort_pairs(e, scratch);
            plan_parts(e, scratch, size);
        }
        quantize(e, scratch, member, size);
        team_barrier(team);
    }
    std::atomic<int64_t>& next = scratch.next[prepare ? 0 : 1];
    int64_t joined = -1;
    for (;;) {
        const int64_t part = next.fetch_add(1, std::memory_order_relaxed);
        if (part >= scratch.part[e.count]) return;
        multiply_part(e, scratch, part, &joined);
    }
}

}  // namespace specx
