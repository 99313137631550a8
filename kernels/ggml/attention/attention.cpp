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
constexpr int64_t kFewRows = 24;    // up to so many, Q8_0 is converted where it is used: see load_tile()

int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

// A row of a token tree sees the text and the way to it, and not what other branches have in between. The cells that
// it sees after such a hole are moved up to its beginning: they are then where they would be if the other branches had
// never been computed, and the row has the same bits. That is done for the last holes, with less than a tile of cells
// after them: a tree has no more, and texts whose cells are used round and round are left alone but for these. So are
// texts that were shifted, where more lies after the hole: these take chains.
struct Moved {
    int32_t hole;  // the first cell of it; -1: nothing is moved
    int32_t end;   // where the row's cells end, when they are moved
    bool in(int64_t tile) const { return hole >= 0 && tile >= hole / kTileCells; }
    int cells(int64_t tile) const {
        return static_cast<int>(std::clamp<int64_t>(end - tile * kTileCells, 0, kTileCells));
    }
};

struct Plan {
    const Attention& op;
    const AttentionKernels& kernels;
    int64_t group;         // heads that share a K and V head
    int64_t tiles;
    bool split;            // tiles are shared out, not rows
    int64_t block_tokens;  // rows (tokens) of a unit of work
    int64_t blocks;        // units of work for each K and V head and tile (or for each K and V head)

    // Scratch memory of one member, in floats.
    int64_t keys_at, widened_at, values_at, tile_at, states_at, running_at, moved_at, gathered_at, seen_at;
    int64_t member_floats;
};

int64_t row_bytes(int64_t type, int64_t size) { return type == kTypeF16 ? 2 * size : size / 32 * 34; }

// Whether rows may have cells that are moved up: see Moved.
bool moves(const Attention& op) { return op.mask != nullptr && op.mask_heads == 1; }

Plan plan_for(const Attention& op, const AttentionKernels& kernels) {
    Plan plan = {op, kernels, op.heads / op.kv_heads, (op.cells + kTileCells - 1) / kTileCells};
    size_t partial = sizeof(float) * (op.v_size + 2) * op.streams * op.heads * op.rows * plan.tiles;
    plan.split = op.rows <= kMaxSplitRows && partial <= kMaxPartialBytes;
    int64_t block = kBlockRows / plan.group > 0 ? kBlockRows / plan.group : 1;
    plan.block_tokens = plan.split || op.rows < block ? op.rows : block;
    plan.blocks = (op.rows + plan.block_tokens - 1) / plan.block_tokens;
    plan.widened_at = plan.keys_at + kTileCells * op.k_size / 2;
    plan.values_at = plan.widened_at + kTileCells * op.k_size;
    plan.tile_at = plan.values_at + kTileCells * op.v_size;
    plan.states_at = plan.tile_at + kRowGroup * op.v_size;
    int64_t held = plan.split ? 1 : plan.block_tokens * plan.group;
    plan.running_at = plan.states_at + aligned(2 * held);
    plan.moved_at = plan.running_at + aligned(held * op.v_size);
    int64_t tokens = plan.split ? op.streams * op.rows : plan.block_tokens;
    plan.gathered_at = plan.moved_at + (moves(op) ? aligned(tokens * sizeof(Moved) / sizeof(float)) : 0);
    int64_t cell_bytes = row_bytes(op.type_k, op.k_size) + row_bytes(op.type_v, op.v_size) + sizeof(uint16_t);
    plan.seen_at = plan.gathered_at + (moves(op) ? aligned(kTileCells * cell_bytes / sizeof(float)) : 0);
    plan.member_floats = plan.seen_at + (plan.split ? aligned(op.streams * plan.tiles) : 0);
    return plan;
}

// Results for the rows of a unit of work: row (token - first) * group + (head in group).
struct Rows {
    int64_t stream, kv_head, first, end;  // tokens [first, end)
    RowState* states;
    float* values;
    const Moved* moved;  // of each token; null: none is
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

// Where the K and V of a head and tile are in the cache.
struct Place {
    const char *k, *v;
    int64_t k_cell, v_cell;
};

Place place_of(const Attention& op, int64_t stream, int64_t kv_head, int64_t tile) {
    int64_t cell = tile * kTileCells;
    return {static_cast<const char*>(op.k) + stream * op.k_stream + kv_head * op.k_head + cell * op.k_cell,
            static_cast<const char*>(op.v) + stream * op.v_stream + kv_head * op.v_head + cell * op.v_cell,
            op.k_cell, op.v_cell};
}

// One tile that is being computed.
struct Tile {
    int64_t index;
    int cells;  // the first ones, which are read
    Place place;
    Fetcher* fetcher;  // of what will be computed next
    bool loaded = false;
    Keys keys = {};
    Values values = {};
};

// Keys and values are converted where they are used, and that for each six rows again, if that is faster than to have
// them converted beforehand: float16 always, as they leave room in the first cache, Q8_0 for a few rows.
void load_tile(const Plan& plan, int64_t tokens, float* scratch, Tile* tile) {
    const Attention& op = plan.op;
    float *keys = scratch + plan.keys_at, *widened = scratch + plan.widened_at, *values = scratch + plan.values_at;
    bool few = tokens * plan.group <= kFewRows;
    tile->loaded = true;
    tile->keys = {op.type_k, keys, keys + kTileCells * op.k_size / 4};
    tile->values = {op.type_v, tile->place.v, tile->place.v_cell};
    plan.kernels.load_keys(op.type_k, tile->place.k, tile->place.k_cell, tile->cells, op.k_size, tile->keys);
    if (op.type_k == kTypeQ8_0 && !few) {
        plan.kernels.widen_keys(tile->keys, tile->cells, op.k_size, widened);
        tile->keys = {0, widened, nullptr};
    }
    if (op.type_v == kTypeQ8_0 && !few) {
        plan.kernels.widen_values(tile->values, tile->cells, op.v_size, values);
        tile->values = {0, values, 0};
    }
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
void flush(const Plan& plan, const Rows& rows, const Tile& tile, float* scratch, Batch* batch) {
    const Attention& op = plan.op;
    float* values[kRowGroup];
    RowState* states[kRowGroup];
    RowState tile_states[kRowGroup];
    for (int i = 0; i < batch->n; ++i) {
        values[i] = plan.split ? rows.values + batch->row[i] * op.v_size : scratch + plan.tile_at + i * op.v_size;
        states[i] = plan.split ? rows.states + batch->row[i] : tile_states + i;
    }
    Logits logits = {op.softcap != 0.0f ? op.scale / op.softcap : op.scale, op.softcap};
    plan.kernels.rows(batch->n, batch->q, tile.keys, tile.values, op.k_size, op.v_size, tile.cells, batch->mask,
                      batch->slope, logits, values, states, tile.fetcher);
    for (int i = 0; i < batch->n && !plan.split; ++i) {
        plan.kernels.fold(op.v_size, rows.states + batch->row[i], rows.values + batch->row[i] * op.v_size,
                          tile_states[i], values[i]);
    }
    batch->n = 0;
}

// How many of the first cells of a tile any of the rows [first, end) sees: what comes after them need not be read. The
// last tile is on average half empty, llama.cpp pads the cells of short contexts up to a multiple of four tiles, and
// each of several streams has as many as the longest.
int cells_seen(const Plan& plan, int64_t stream, int64_t head, int64_t heads, int64_t first, int64_t end,
               int64_t tile) {
    const Attention& op = plan.op;
    int64_t cell = tile * kTileCells;
    int cells = static_cast<int>(op.cells - cell < kTileCells ? op.cells - cell : kTileCells);
    if (op.mask == nullptr) return cells;
    int seen = 0;
    for (int64_t token = end - 1; token >= first && seen < cells; --token) {  // the last sees most
        for (int64_t h = head; h < (op.mask_heads > 1 ? head + heads : head + 1); ++h) {
            const uint16_t* mask = mask_of(op, stream, h, token) + cell;
            seen = std::max(seen, plan.kernels.visible_cells(mask, cells));
        }
    }
    return seen;
}

// Where the cells of the tokens [first, end) are moved; null if none are.
const Moved* find_moved(const Plan& plan, int64_t stream, int64_t first, int64_t end, Moved* moved) {
    const Attention& op = plan.op;
    if (!moves(op)) return nullptr;
    bool any = false;
    for (int64_t token = first; token < end; ++token) {
        const uint16_t* mask = mask_of(op, stream, 0, token);
        int64_t hole = plan.kernels.last_holes(mask, op.cells), after = 0;
        for (int64_t cell = hole; hole >= 0 && cell < op.cells; ++cell) after += mask[cell] != kHidden;
        moved[token - first] = {static_cast<int32_t>(hole), static_cast<int32_t>(hole + after)};
        any = any || hole >= 0;
    }
    return any ? moved : nullptr;
}

// How many cells of a tile are to be read, or stand there when they are moved.
int cells_wanted(int seen, const Moved* moved, int64_t tokens, int64_t tile) {
    for (int64_t i = 0; moved != nullptr && i < tokens; ++i) {
        if (moved[i].in(tile)) seen = std::max(seen, moved[i].cells(tile));
    }
    return seen;
}

// One row of a batch more.
void add(const Plan& plan, const Rows& rows, int64_t token, int64_t g, const uint16_t* mask, Batch* batch) {
    const Attention& op = plan.op;
    int64_t head = rows.kv_head * plan.group + g;
    const char* q = static_cast<const char*>(op.q) + token * op.q_row + head * op.q_head + rows.stream * op.q_stream;
    batch->q[batch->n] = reinterpret_cast<const float*>(q);
    batch->mask[batch->n] = mask;
    batch->slope[batch->n] = slope_of(op, head);
    batch->row[batch->n] = (token - rows.first) * plan.group + g;
    ++batch->n;
}

// What a row whose cells are moved up finds in the place of a tile.
void compute_moved(const Plan& plan, const Rows& rows, const Tile& tile, int64_t token, float* scratch) {
    const Attention& op = plan.op;
    const Moved& moved = rows.moved[token - rows.first];
    int64_t k_bytes = row_bytes(op.type_k, op.k_size), v_bytes = row_bytes(op.type_v, op.v_size);
    auto* keys = reinterpret_cast<char*>(scratch + plan.gathered_at);
    char* values = keys + kTileCells * k_bytes;
    auto* masks = reinterpret_cast<uint16_t*>(values + kTileCells * v_bytes);
    const uint16_t* mask = mask_of(op, rows.stream, 0, token);
    const int64_t first = tile.index * kTileCells;
    Fetcher none = {};
    Tile own = {tile.index, moved.cells(tile.index), {keys, values, k_bytes, v_bytes}, &none};
    int64_t place = std::min<int64_t>(first, moved.hole);
    for (int64_t cell = place; place < first + own.cells; ++cell) {
        if (cell >= moved.hole && mask[cell] == kHidden) continue;
        if (place >= first) {
            int64_t to = place - first, from = cell - first;
            std::memcpy(keys + to * k_bytes, tile.place.k + from * op.k_cell, k_bytes);
            std::memcpy(values + to * v_bytes, tile.place.v + from * op.v_cell, v_bytes);
            masks[to] = mask[cell];
        }
        ++place;
    }
    load_tile(plan, 1, scratch, &own);
    Batch batch;
    for (int64_t g = 0; g < plan.group; ++g) {
        add(plan, rows, token, g, masks, &batch);
        if (batch.n == kRowGroup) flush(plan, rows, own, scratch, &batch);
    }
    if (batch.n > 0) flush(plan, rows, own, scratch, &batch);
}

// One tile, of which some row sees a cell, for all the rows that do.
void compute_tile(const Plan& plan, const Rows& rows, Tile tile, float* scratch) {
    const Attention& op = plan.op;
    bool blind = false;
    const uint16_t* mask = nullptr;
    Batch batch;
    for (int64_t token = rows.first; token < rows.end; ++token) {
        const bool moved = rows.moved != nullptr && rows.moved[token - rows.first].in(tile.index);
        for (int64_t g = 0; g < plan.group; ++g) {
            int64_t head = rows.kv_head * plan.group + g;
            if (op.mask != nullptr && (g == 0 || op.mask_heads > 1)) {
                mask = mask_of(op, rows.stream, head, token) + tile.index * kTileCells;
                blind = moved || plan.kernels.visible_cells(mask, tile.cells) == 0;
            }
            if (blind) {
                if (plan.split) rows.states[(token - rows.first) * plan.group + g].maximum = kMinusInfinity;
                continue;
            }
            if (!tile.loaded) load_tile(plan, rows.end - rows.first, scratch, &tile);
            add(plan, rows, token, g, mask, &batch);
            if (batch.n == kRowGroup) flush(plan, rows, tile, scratch, &batch);
        }
    }
    if (batch.n > 0) flush(plan, rows, tile, scratch, &batch);
    if (rows.moved == nullptr) return;
    for (int64_t token = rows.first; token < rows.end; ++token) {
        const Moved& moved = rows.moved[token - rows.first];
        if (moved.in(tile.index) && moved.cells(tile.index) > 0) compute_moved(plan, rows, tile, token, scratch);
    }
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

// What one member does where tiles are shared out: a stretch of all tiles that are seen, in the order of memory: by
// stream, tile and head.
struct Share {
    const Plan& plan;
    const int32_t* seen;  // [streams][tiles]: cells
    const Moved* moved;   // [streams][rows]; null: none are
    int64_t at;           // an item: (stream * tiles + tile) * kv_heads + head
    int64_t cells_left;   // of this item and those after it

    bool skip_unseen() {
        while (cells_left > 0 && seen[at / plan.op.kv_heads] == 0) at += plan.op.kv_heads;
        return cells_left > 0;
    }
    bool advance() {
        cells_left -= cells();
        ++at;
        return skip_unseen();
    }
    int64_t stream() const { return at / plan.op.kv_heads / plan.tiles; }
    int64_t tile() const { return at / plan.op.kv_heads % plan.tiles; }
    int64_t head() const { return at % plan.op.kv_heads; }
    int cells() const { return seen[at / plan.op.kv_heads]; }
    Place place() const { return place_of(plan.op, stream(), head(), tile()); }
};

// K and V of all heads of the next tile: together they lie side by side.
Fetcher fetcher_of(const Plan& plan, const Share& share) {
    const Attention& op = plan.op;
    int64_t items = op.kv_heads - share.head();
    Share next = {plan, share.seen, share.moved, share.at + items, share.cells_left - items * share.cells()};
    if (!next.skip_unseen() || op.k_head * op.kv_heads > op.k_cell || op.v_head * op.kv_heads > op.v_cell) return {};
    Place place = next.place();
    return {{place.k, next.cells() * op.k_cell}, {place.v, next.cells() * op.v_cell}};
}

// `seen` and `moved` are filled in.
Share share_of(const Plan& plan, int32_t* seen, Moved* moved, int member, int size) {
    const Attention& op = plan.op;
    int64_t all = 0;
    bool any = false;
    for (int64_t stream = 0; stream < op.streams; ++stream) {
        const Moved* here = find_moved(plan, stream, 0, op.rows, moved + stream * op.rows);
        any = any || here != nullptr;
        for (int64_t tile = 0; tile < plan.tiles; ++tile) {
            int cells = cells_seen(plan, stream, 0, op.heads, 0, op.rows, tile);
            cells = cells_wanted(cells, here, op.rows, tile);
            seen[stream * plan.tiles + tile] = cells;
            all += cells * op.kv_heads;
        }
    }
    // An item belongs to the member in whose part of all cells it begins.
    Share share = {plan, seen, any ? moved : nullptr, 0, all};
    int64_t begin = all * member / size, end = all * (member + 1) / size;
    bool more = share.skip_unseen();
    while (more && all - share.cells_left < begin) more = share.advance();
    share.cells_left -= all - end;
    return share;
}

// Tiles are shared out: each leaves a state and a value for every row, which are folded in a second pass.
void attention_by_tiles(const Plan& plan, float* partial, float* scratch, Team* team, int member, int size) {
    const Attention& op = plan.op;
    int64_t per_tile = op.rows * plan.group;
    int64_t heads = op.streams * op.kv_heads;
    auto* states = reinterpret_cast<RowState*>(partial);
    float* values = partial + aligned(2 * heads * plan.tiles * per_tile);
    auto* seen = reinterpret_cast<int32_t*>(scratch + plan.seen_at);
    Share share = share_of(plan, seen, reinterpret_cast<Moved*>(scratch + plan.moved_at), member, size);
    Fetcher fetcher = {};
    bool first = true;
    for (bool more = share.cells_left > 0; more; first = false) {
        Rows rows = {share.stream(), share.head(), 0, op.rows, states + share.at * per_tile,
                     values + share.at * per_tile * op.v_size,
                     share.moved != nullptr ? share.moved + share.stream() * op.rows : nullptr};
        Tile tile = {share.tile(), share.cells(), share.place(), &fetcher};
        if (first || share.head() == 0) fetcher = fetcher_of(plan, share);
        more = share.advance();
        compute_tile(plan, rows, tile, scratch);
    }
    team_barrier(team);
    float* value = scratch + plan.running_at;
    for (int64_t item = member; item < heads * per_tile; item += size) {
        int64_t stream = item / per_tile / op.kv_heads, head = item / per_tile % op.kv_heads, row = item % per_tile;
        RowState state = {kMinusInfinity, 0.0f};
        for (int64_t tile = 0; tile < plan.tiles; ++tile) {
            if (seen[stream * plan.tiles + tile] == 0) continue;
            int64_t at = ((stream * plan.tiles + tile) * op.kv_heads + head) * per_tile + row;
            plan.kernels.fold(op.v_size, &state, value, states[at], values + at * op.v_size);
        }
        finish_row(plan, stream, head * plan.group + row % plan.group, row / plan.group, &state, value,
                   scratch + plan.tile_at);
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
                     reinterpret_cast<RowState*>(scratch + plan.states_at), scratch + plan.running_at,
                     find_moved(plan, head / op.kv_heads, first, end,
                                reinterpret_cast<Moved*>(scratch + plan.moved_at))};
        int64_t count = (end - first) * plan.group;
        for (int64_t row = 0; row < count; ++row) rows.states[row] = {kMinusInfinity, 0.0f};
        for (int64_t tile = 0; tile < plan.tiles; ++tile) {
            int cells = cells_seen(plan, rows.stream, rows.kv_head * plan.group, plan.group, first, end, tile);
            cells = cells_wanted(cells, rows.moved, end - first, tile);
            Fetcher none = {};
            Tile current = {tile, cells, place_of(op, rows.stream, rows.kv_head, tile), &none};
            if (cells > 0) compute_tile(plan, rows, current, scratch);
        }
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
