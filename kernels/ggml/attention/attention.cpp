#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_tile.hpp"

namespace specx {
namespace {

constexpr int64_t kTypeF16 = 1, kTypeQ8_0 = 8;  // ggml's numbers
constexpr float kMinusInfinity = -INFINITY;

// Up to this many rows the tiles are shared out among the threads and folded in a second pass; wider batches have
// enough rows to share those out instead. The results are the same, only the time differs.
constexpr int64_t kMaxSplitRows = 64;
constexpr size_t kMaxPartialBytes = size_t{32} << 20;
constexpr int64_t kBlockRows = 96;  // rows that share the loading of a tile when rows are shared out

int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

struct Plan {
    const Attention& op;
    const AttentionKernels& kernels;
    int64_t group;         // heads that share a K and V head
    int64_t tiles;
    bool split;            // tiles are shared out, not rows
    int64_t block_tokens;  // rows (tokens) of a unit of work
    int64_t blocks;        // units of work for each K and V head and tile (or for each K and V head)

    // Scratch memory of one member, in floats.
    int64_t rows_at, keys_at, values_at, tile_at, states_at, running_at, member_floats;
};

Plan plan_for(const Attention& op, const AttentionKernels& kernels) {
    Plan plan = {op, kernels, op.heads / op.kv_heads, (op.cells + kTileCells - 1) / kTileCells, false, 0, 0, 0, 0,
                 0,  0,       0,                      0, 0};
    size_t partial = sizeof(float) * (op.v_size + 2) * op.streams * op.heads * op.rows * plan.tiles;
    plan.split = op.rows <= kMaxSplitRows && partial <= kMaxPartialBytes;
    int64_t block = kBlockRows / plan.group > 0 ? kBlockRows / plan.group : 1;
    plan.block_tokens = plan.split || op.rows < block ? op.rows : block;
    plan.blocks = (op.rows + plan.block_tokens - 1) / plan.block_tokens;
    plan.keys_at = plan.rows_at + 16 * op.k_size;
    plan.values_at = plan.keys_at + kTileCells * op.k_size;
    plan.tile_at = plan.values_at + kTileCells * op.v_size;
    plan.states_at = plan.tile_at + kRowGroup * op.v_size;
    int64_t held = plan.split ? 1 : plan.block_tokens * plan.group;
    plan.running_at = plan.states_at + aligned(2 * held);
    plan.member_floats = plan.running_at + aligned(held * op.v_size);
    return plan;
}

// Results for the rows of a unit of work: row (token - first) * group + (head in group).
struct Rows {
    int64_t stream, kv_head, first, end;  // tokens [first, end)
    RowState* states;
    float* values;
};

// ALiBi (Press et al., 2022), with ggml's slopes.
float slope_of(const Attention& op, int64_t head) {
    if (op.max_bias <= 0.0f) return 1.0f;
    int64_t power = 1;
    while (power * 2 <= op.heads) power *= 2;
    float base = std::pow(2.0f, -op.max_bias / static_cast<float>(power));
    if (head < power) return std::pow(base, static_cast<float>(head + 1));
    float half = std::pow(2.0f, -op.max_bias / 2.0f / static_cast<float>(power));
    return std::pow(half, static_cast<float>(2 * (head - power) + 1));
}

const uint16_t* mask_of(const Attention& op, int64_t stream, int64_t head, int64_t token) {
    const char* row = static_cast<const char*>(op.mask) + token * op.mask_row +
                      head % op.mask_heads * op.mask_head + stream % op.mask_streams * op.mask_stream;
    return reinterpret_cast<const uint16_t*>(row);
}

void load_tile(const Plan& plan, const Rows& rows, int64_t tile, int cells, float* scratch) {
    const Attention& op = plan.op;
    int64_t cell = tile * kTileCells;
    const char* k = static_cast<const char*>(op.k) + rows.stream * op.k_stream + rows.kv_head * op.k_head;
    const char* v = static_cast<const char*>(op.v) + rows.stream * op.v_stream + rows.kv_head * op.v_head;
    plan.kernels.load_keys(op.type_k, k + cell * op.k_cell, op.k_cell, cells, op.k_size, scratch + plan.rows_at,
                           scratch + plan.keys_at);
    plan.kernels.load_values(op.type_v, v + cell * op.v_cell, op.v_cell, cells, op.v_size,
                             scratch + plan.values_at);
}

// Rows collected until there are enough to be computed together.
struct Batch {
    int n = 0;
    const float* q[kRowGroup];
    const uint16_t* mask[kRowGroup];
    float slope[kRowGroup];
    int64_t row[kRowGroup];
};

// Compute a batch over the loaded tile: into the rows' own places, or folded into what is there.
void flush(const Plan& plan, const Rows& rows, int cells, float* scratch, Batch* batch) {
    const Attention& op = plan.op;
    float* values[kRowGroup];
    RowState* states[kRowGroup];
    RowState tile_states[kRowGroup];
    for (int i = 0; i < batch->n; ++i) {
        values[i] = plan.split ? rows.values + batch->row[i] * op.v_size : scratch + plan.tile_at + i * op.v_size;
        states[i] = plan.split ? rows.states + batch->row[i] : tile_states + i;
    }
    Logits logits = {op.softcap != 0.0f ? op.scale / op.softcap : op.scale, op.softcap};
    plan.kernels.rows(batch->n, batch->q, scratch + plan.keys_at, scratch + plan.values_at, op.k_size, op.v_size,
                      cells, batch->mask, batch->slope, logits, values, states);
    for (int i = 0; i < batch->n && !plan.split; ++i) {
        plan.kernels.fold(op.v_size, rows.states + batch->row[i], rows.values + batch->row[i] * op.v_size,
                          tile_states[i], values[i]);
    }
    batch->n = 0;
}

// How many of the first cells of a tile any of the rows sees: what comes after them need not be read. The last tile is
// on average half empty, and llama.cpp pads the cells of short contexts up to a multiple of four tiles.
int cells_seen(const Plan& plan, const Rows& rows, int64_t cell) {
    const Attention& op = plan.op;
    int cells = static_cast<int>(op.cells - cell < kTileCells ? op.cells - cell : kTileCells);
    if (op.mask == nullptr) return cells;
    int seen = 0;
    for (int64_t token = rows.end - 1; token >= rows.first && seen < cells; --token) {  // the last sees most
        for (int64_t g = 0; g < (op.mask_heads > 1 ? plan.group : 1); ++g) {
            const uint16_t* mask = mask_of(op, rows.stream, rows.kv_head * plan.group + g, token) + cell;
            seen = std::max(seen, plan.kernels.visible_cells(mask, cells));
        }
    }
    return seen;
}

// One tile for all the rows that see any of its cells.
void compute_tile(const Plan& plan, const Rows& rows, int64_t tile, float* scratch) {
    const Attention& op = plan.op;
    int64_t cell = tile * kTileCells;
    int cells = cells_seen(plan, rows, cell);
    if (cells == 0) {
        for (int64_t row = 0; plan.split && row < (rows.end - rows.first) * plan.group; ++row)
            rows.states[row].maximum = kMinusInfinity;
        return;
    }
    bool loaded = false, blind = false;
    const uint16_t* mask = nullptr;
    Batch batch;
    for (int64_t token = rows.first; token < rows.end; ++token) {
        for (int64_t g = 0; g < plan.group; ++g) {
            int64_t head = rows.kv_head * plan.group + g;
            int64_t row = (token - rows.first) * plan.group + g;
            if (op.mask != nullptr && (g == 0 || op.mask_heads > 1)) {
                mask = mask_of(op, rows.stream, head, token) + cell;
                blind = plan.kernels.visible_cells(mask, cells) == 0;
            }
            if (blind) {
                if (plan.split) rows.states[row].maximum = kMinusInfinity;
                continue;
            }
            if (!loaded) load_tile(plan, rows, tile, cells, scratch);
            loaded = true;
            const char* q = static_cast<const char*>(op.q) + token * op.q_row + head * op.q_head;
            batch.q[batch.n] = reinterpret_cast<const float*>(q + rows.stream * op.q_stream);
            batch.mask[batch.n] = mask;
            batch.slope[batch.n] = slope_of(op, head);
            batch.row[batch.n] = row;
            if (++batch.n == kRowGroup) flush(plan, rows, cells, scratch, &batch);
        }
    }
    if (batch.n > 0) flush(plan, rows, cells, scratch, &batch);
}

// Add the head's sink, if it has one, and write the result of a row.
void finish_row(const Plan& plan, int64_t stream, int64_t head, int64_t token, RowState* state, float* value,
                float* zeros) {
    const Attention& op = plan.op;
    if (op.sinks != nullptr) {
        std::memset(zeros, 0, sizeof(float) * op.v_size);
        plan.kernels.fold(op.v_size, state, value, {op.sinks[head], 1.0f}, zeros);
    }
    char* dst = static_cast<char*>(op.dst) + head * op.dst_head + token * op.dst_row + stream * op.dst_stream;
    plan.kernels.finish(op.v_size, *state, value, reinterpret_cast<float*>(dst));
}

// Tiles are shared out: each leaves a state and a value for every row, which are folded in a second pass.
void attention_by_tiles(const Plan& plan, float* partial, float* scratch, Team* team, int member, int size) {
    const Attention& op = plan.op;
    int64_t per_tile = op.rows * plan.group;
    int64_t heads = op.streams * op.kv_heads;
    auto* states = reinterpret_cast<RowState*>(partial);
    float* values = partial + aligned(2 * heads * plan.tiles * per_tile);
    // In turns by tile, then head: the last tiles of every head may be empty or nearly so, and everybody gets his share.
    for (int64_t turn = member; turn < heads * plan.tiles; turn += size) {
        int64_t head = turn % heads, tile = turn / heads;
        int64_t item = head * plan.tiles + tile;
        Rows rows = {head / op.kv_heads, head % op.kv_heads, 0, op.rows, states + item * per_tile,
                     values + item * per_tile * op.v_size};
        compute_tile(plan, rows, tile, scratch);
    }
    team_barrier(team);
    float* value = scratch + plan.running_at;
    for (int64_t item = member; item < heads * per_tile; item += size) {
        int64_t head = item / per_tile, row = item % per_tile;
        RowState state = {kMinusInfinity, 0.0f};
        for (int64_t tile = 0; tile < plan.tiles; ++tile) {
            int64_t at = (head * plan.tiles + tile) * per_tile + row;
            plan.kernels.fold(op.v_size, &state, value, states[at], values + at * op.v_size);
        }
        finish_row(plan, head / op.kv_heads, head % op.kv_heads * plan.group + row % plan.group, row / plan.group,
                   &state, value, scratch + plan.tile_at);
    }
}

// Rows are shared out: each block of them goes through all tiles.
void attention_by_rows(const Plan& plan, float* scratch, int member, int size) {
    const Attention& op = plan.op;
    int64_t items = op.streams * op.kv_heads * plan.blocks;
    for (int64_t item = member; item < items; item += size) {
        int64_t head = item / plan.blocks, first = item % plan.blocks * plan.block_tokens;
        int64_t end = first + plan.block_tokens < op.rows ? first + plan.block_tokens : op.rows;
        Rows rows = {head / op.kv_heads, head % op.kv_heads, first, end,
                     reinterpret_cast<RowState*>(scratch + plan.states_at), scratch + plan.running_at};
        int64_t count = (end - first) * plan.group;
        for (int64_t row = 0; row < count; ++row) rows.states[row] = {kMinusInfinity, 0.0f};
        for (int64_t tile = 0; tile < plan.tiles; ++tile) compute_tile(plan, rows, tile, scratch);
        for (int64_t row = 0; row < count; ++row) {
            finish_row(plan, rows.stream, rows.kv_head * plan.group + row % plan.group,
                       first + row / plan.group, rows.states + row, rows.values + row * op.v_size,
                       scratch + plan.tile_at);
        }
    }
}

bool handled(int64_t type, int64_t size) {
    if (size < 16 || size > 1024) return false;
    return (type == kTypeF16 && size % 16 == 0) || (type == kTypeQ8_0 && size % 32 == 0);
}

const AttentionKernels& kernels_for(Isa isa) {
    const AttentionKernels* found = nullptr;
    switch (isa) {
        case Isa::avx512_vnni:
        case Isa::amx_int8: found = attention_kernels_avx512(); break;
        case Isa::avx2:
        case Isa::avx_vnni: found = attention_kernels_avx2(); break;
        case Isa::neon_dotprod:
        case Isa::neon_i8mm: found = attention_kernels_neon(); break;
        case Isa::generic: break;
    }
    return found != nullptr ? *found : *attention_kernels_generic();
}

}  // namespace

bool attention_supported(const Attention& op) {
    return handled(op.type_k, op.k_size) && handled(op.type_v, op.v_size) && op.rows > 0 && op.cells > 0 &&
           op.streams > 0 && op.kv_heads > 0 && op.heads % op.kv_heads == 0;
}

size_t attention_scratch_size(const Attention& op, int threads) {
    Plan plan = plan_for(op, *attention_kernels_generic());
    int64_t floats = plan.member_floats * threads;
    if (plan.split) {
        int64_t partials = op.streams * op.heads * op.rows * plan.tiles;
        floats += aligned(2 * partials) + aligned(partials * op.v_size);
    }
    return sizeof(float) * floats;
}

void attention(Isa isa, const Attention& op, void* scratch, Team* team, int member, int size) {
    Plan plan = plan_for(op, kernels_for(isa));
    float* shared = static_cast<float*>(scratch) + plan.member_floats * size;
    float* own = static_cast<float*>(scratch) + plan.member_floats * member;
    if (plan.split) {
        attention_by_tiles(plan, shared, own, team, member, size);
    } else {
        attention_by_rows(plan, own, member, size);
    }
}

}  // namespace specx
