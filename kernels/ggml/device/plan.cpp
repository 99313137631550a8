#include "plan.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "float_matmul.hpp"
#include "formats.hpp"
#include "weights.hpp"

namespace specx {
namespace {

using ggml::Graph;
using ggml::Tensor;

// Up to so many tokens work is cut by columns. Beyond, a barrier costs nothing beside what lies between two.
constexpr int64_t kFewTokens = 32;
constexpr int64_t kMoved = 8;        // tasks that a multiplication is moved before, at most
constexpr int64_t kQuantized = 32;   // columns that are quantized together
constexpr size_t kKnownTasks = 1 << 13;  // of all plans that are kept, 1.2 MB: a graph may come in many pieces

int64_t boundary(int64_t columns, int64_t unit, int member, int size) {
    const int64_t units = (columns + unit - 1) / unit;
    return std::min(units * member / size * unit, columns);
}

// Cut at multiples of 32 columns, as the quantization of what is computed wants it, unless that gives a thread more than
// multiples of 16 do.
int64_t usual_unit(int64_t columns, int threads) {
    const auto most = [&](int64_t unit) { return ((columns + unit - 1) / unit + threads - 1) / threads * unit; };
    return columns % kQuantized == 0 && most(kQuantized) <= most(kRowUnit) ? kQuantized : kRowUnit;
}

// Scratch memory, by what it is used for. Addresses in it are made up until all sizes are known: of region i they begin
// at i * kRegion, which no memory of a process does.
enum Region { kActivations, kMoreActivations, kSums, kMoreSums, kAngles, kOther, kRegions };
constexpr uintptr_t kRegion = uintptr_t{1} << 58;

const char* address(Region region, size_t offset = 0) {
    return reinterpret_cast<const char*>(kRegion * (region + 1) + offset);
}

// Memory that a task reads or writes. `row_bytes` is 0 where any thread may touch all of it; otherwise it goes by the cut.
struct Access {
    const char *begin, *end;
    bool write;
    size_t row_bytes, stride;
};

// A task while it is planned.
struct Planned : Task {
    int accesses = 0;
    Access access[7] = {};
};

class Planner {
  public:
    Planner(int threads, std::vector<Planned>& room) : threads_(threads), tasks_(room) { tasks_.clear(); }

    // `tasks` becomes those of the plan.
    Plan plan(const Graph* graph, std::vector<Task> tasks);

  private:
    struct Angles {
        const Tensor* positions;
        Rotation rotation;
        size_t offset;
    };
    // What a region of activations holds: rows of `x`, quantized for weights of `type`.
    struct Quantized {
        const Tensor* x = nullptr;
        int type = 0;
        // The tasks after the multiplications that read it: after the first ones in a row, and after the last.
        size_t first_end = 0, last_end = 0;
    };

    void add(const Tensor* op);
    void forget_overwritten(const Tensor* op);
    void add_multiplication(const Tensor* op);
    void moved_from(size_t place);
    void add_norm(const Tensor* op, const Tensor* product);
    void add_rotation(const Tensor* op);
    void add_elementwise(const Tensor* op);
    void add_rows(const Tensor* op);
    void add_other(Kind kind, const Tensor* op, size_t bytes);

    Planned task(Kind kind, const Tensor* op, int dims, int64_t unit) const;
    size_t angles_of(const Tensor* op);
    void reserve(Region region, size_t bytes) { sizes_[region] = std::max(sizes_[region], bytes); }
    bool same_cut(const Access& a, const Cut& cut_a, const Access& b, const Cut& cut_b) const;
    void choose_cut(size_t index, size_t stage);
    bool must_wait(size_t index, size_t stage) const;
    void place_barriers();
    void place_scratch(Plan* plan);

    const int threads_;
    int64_t tokens_ = 0;  // rows of the latest multiplication
    std::vector<Planned>& tasks_;
    std::vector<Angles> angles_;
    Quantized held_[2];
    int next_held_ = 0, next_sums_ = 0;
    size_t sizes_[kRegions] = {};
};

void touch(Planned& task, const char* begin, const char* end, bool write) {
    task.access[task.accesses++] = {begin, end, write, 0, 0};
}

void touch(Planned& task, const Tensor* t, bool write) {
    const char* begin = static_cast<const char*>(t->data);
    int64_t block = 1;  // elements that a step of nb[0] has
    if (t->type == ggml::kTypeQ8_0) block = 32;
    const char* end = begin + t->ne[0] / block * t->nb[0];
    for (int i = 1; i < 4; ++i) end += (t->ne[i] - 1) * t->nb[i];
    touch(task, begin, end, write);
}

void touch(Planned& task, const Rows& rows, bool write) {
    const size_t bytes = rows.columns * rows.element;
    const size_t stride = rows.count > 1 ? rows.stride : 0;
    task.access[task.accesses++] = {rows.start, rows.start + (rows.count - 1) * stride + bytes, write, bytes, stride};
}

bool conflict(const Access& a, const Access& b) { return (a.write || b.write) && a.begin < b.end && b.begin < a.end; }

bool conflict(const Planned& a, const Planned& b) {
    for (int i = 0; i < a.accesses; ++i)
        for (int j = 0; j < b.accesses; ++j)
            if (conflict(a.access[i], b.access[j])) return true;
    return false;
}

bool overlap(const Tensor* a, const Tensor* b) {
    Planned both = {};
    touch(both, a, true), touch(both, b, true);
    return conflict(both.access[0], both.access[1]);
}

// Whether `out` may be written while `x` is still being read, element by element: ggml may give it the memory of `x`,
// which nobody needs by then, in any other place.
bool fits_over(const Tensor* out, const Tensor* x) {
    const bool same = out->data == x->data && std::memcmp(out->nb, x->nb, sizeof x->nb) == 0;
    return same || !overlap(out, x);
}

// Rows of the activations that are multiplied at once: all of them, unless their strides differ.
bool sliced(const Tensor* op) { return !evenly_strided(op->src[1]) || !evenly_strided(op); }

Planned Planner::task(Kind kind, const Tensor* op, int dims, int64_t unit) const {
    Planned task = {{kind, op}};
    as_rows(op, dims, &task.out);
    as_rows(op->src[0], dims, &task.x);
    task.cut = {task.out.count, task.out.columns, 0};
    task.unit = unit;
    return task;
}

void Planner::add_other(Kind kind, const Tensor* op, size_t bytes) {
    Planned task = {{kind, op}};
    for (int i = 0; i < 5; ++i)
        if (op->src[i] != nullptr && !(i == 0 && kind != Kind::attention)) touch(task, op->src[i], false);
    // The parts of two multiplications with the same experts are handed out from the same memory.
    if (kind == Kind::experts && !tasks_.empty()) {
        const Planned& before = tasks_.back();
        const Tensor *w = op->src[0], *other = before.op->src[0];
        task.prepared = before.kind == Kind::experts && !before.prepared && before.op->src[1] == op->src[1] &&
                        before.op->src[2] == op->src[2] && other->type == w->type && other->ne[1] == w->ne[1] &&
                        other->ne[2] == w->ne[2];
    }
    touch(task, op, true);
    if (bytes > 0) touch(task, address(kOther), address(kOther, bytes), !task.prepared);
    reserve(kOther, bytes);
    tasks_.push_back(task);
}

void Planner::add_multiplication(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    tokens_ = x->ne[1] * x->ne[2] * x->ne[3];
    if (has_float_weights(op)) return add_other(Kind::multiply_floats, op, 0);
    if (sliced(op)) return add_other(Kind::multiply_slices, op, scratch_size(w->type, w->ne[0], x->ne[1]));
    const size_t bytes = scratch_size(w->type, w->ne[0], tokens_);
    int slot = 0;
    while (slot < 2 && !(held_[slot].x == x && held_[slot].type == w->type)) ++slot;
    const bool found = slot < 2;
    if (!found) {
        slot = next_held_;
        next_held_ = 1 - next_held_;
        held_[slot] = {x, w->type, 0, 0};
        Planned quantize = {{Kind::quantize, op}};
        quantize.x = {static_cast<char*>(x->data), tokens_, x->ne[0], x->nb[1]};
        quantize.cut = {tokens_, x->ne[0], 0};
        quantize.unit = tokens_ <= kFewTokens ? kQuantized : 0;
        quantize.scratch = slot;
        if (quantize.unit != 0)
            touch(quantize, quantize.x, false);
        else
            touch(quantize, x, false);
        touch(quantize, address(Region(slot)), address(Region(slot), bytes), true);
        reserve(Region(slot), bytes);
        tasks_.push_back(quantize);
    }
    Planned task = {{Kind::multiply, op}};
    task.out = {static_cast<char*>(op->data), tokens_, w->ne[1], op->nb[1]};
    task.cut = {tokens_, w->ne[1], 0};
    task.unit = kRowUnit;
    task.scratch = slot;
    touch(task, address(Region(slot)), address(Region(slot), bytes), false);
    touch(task, task.out, true);
    // Next to those with the same activations, if nothing between them forbids it: Q, K and V, rotated in between.
    // V often gets the memory of Q before its rotation and has to stay behind that, but K goes past both.
    Quantized& held = held_[slot];
    size_t place = tasks_.size(), highest = place;
    if (found) {
        const size_t least = place > kMoved ? place - kMoved : 0;
        while (highest > least && !conflict(tasks_[highest - 1], task)) --highest;
        if (highest <= held.last_end) place = held.last_end;
        if (highest <= held.first_end) place = held.first_end;
    }
    const bool in_a_row = !found || place == held.first_end;
    tasks_.insert(tasks_.begin() + place, task);
    moved_from(place);
    if (in_a_row) held.first_end = place + 1;
    held.last_end = std::max(held.last_end, place + 1);
}

// A task was inserted there.
void Planner::moved_from(size_t place) {
    for (Quantized& held : held_) {
        held.first_end += held.first_end > place;
        held.last_end += held.last_end > place;
    }
}

void Planner::add_norm(const Tensor* op, const Tensor* product) {
    const int dims = columns_of(op, tokens_);
    const int64_t row = op->ne[0];
    Planned task = this->task(Kind::norm, op, dims, row);
    task.product = product;
    task.other = task.out;  // the norm without its weights
    if (product != nullptr) as_rows(product, dims, &task.out);
    const bool few = task.out.count <= kFewTokens;
    if (few && row == task.out.columns) {
        const Region region = Region(kSums + next_sums_);
        next_sums_ = 1 - next_sums_;
        const size_t bytes = task.out.count * (row / kRowUnit) * sizeof(float);
        Planned squares = task;
        squares.kind = Kind::squares, task.kind = Kind::normalize;
        squares.unit = task.unit = kRowUnit;
        squares.scratch = task.scratch = region;
        touch(squares, squares.x, false);
        touch(squares, address(region), address(region, bytes), true);
        touch(task, address(region), address(region, bytes), false);
        reserve(region, bytes);
        tasks_.push_back(squares);
    } else if (!few) {
        task.unit = 0;
    }
    touch(task, task.x, false);
    touch(task, task.out, true);
    if (product != nullptr && op->data != product->data) touch(task, task.other, true);
    if (product != nullptr) touch(task, product->src[product->src[0] == op ? 1 : 0], false);
    tasks_.push_back(task);
}

// Angles are computed once for all layers: they depend on inputs alone, so that they come before everything else.
size_t Planner::angles_of(const Tensor* op) {
    const Rotation rotation = rotation_of(op);
    for (const Angles& known : angles_)
        if (known.positions == op->src[1] && known.rotation == rotation) return known.offset;
    const size_t offset = sizes_[kAngles], bytes = round_up(op->ne[2] * 2 * rotation.dims * sizeof(float));
    sizes_[kAngles] += bytes;
    Planned task = {{Kind::angles, op}};
    task.cut = {op->ne[2], 0, 0};
    task.tables = offset;
    touch(task, op->src[1], false);
    if (op->src[2] != nullptr) touch(task, op->src[2], false);
    touch(task, address(kAngles, offset), address(kAngles, offset + bytes), true);
    tasks_.insert(tasks_.begin(), task);
    moved_from(0);
    angles_.push_back({op->src[1], rotation, offset});
    return offset;
}

void Planner::add_rotation(const Tensor* op) {
    const size_t offset = angles_of(op);
    Planned task = this->task(Kind::rotate, op, columns_of(op, op->ne[2]), op->ne[0]);
    if (task.out.count > kFewTokens) task.unit = 0;
    task.tables = offset;
    touch(task, task.x, false);
    touch(task, address(kAngles, offset), address(kAngles, offset + 1), false);
    touch(task, task.out, true);
    tasks_.push_back(task);
}

void Planner::add_elementwise(const Tensor* op) {
    Kind kind = Kind::add;
    if (op->op == ggml::kOpMul) kind = Kind::scale_rows;
    if (op->op == ggml::kOpScale) kind = Kind::scale;
    if (op->op == ggml::kOpUnary) kind = Kind::activate;
    if (op->op == ggml::kOpGlu) kind = Kind::gate;
    const int dims = columns_of(op, tokens_);
    Planned task = this->task(kind, op, dims, kRowUnit);
    if (task.out.count > kFewTokens) task.unit = 0;
    if (kind == Kind::gate && op->src[1] == nullptr) {  // both halves of a row
        const size_t half = task.out.columns * sizeof(float), swapped = op->op_params[1] != 0 ? half : 0;
        touch(task, op->src[0], false);
        task.x.columns = task.out.columns;
        task.other = task.x;
        task.x.start += swapped, task.other.start += half - swapped;
    } else {
        touch(task, task.x, false);
        if (kind == Kind::add || kind == Kind::scale_rows || kind == Kind::gate) {
            const Tensor* b = op->src[1];
            const bool one_row = is_one_row(b) && b->ne[0] != task.out.columns * task.out.count;
            if (one_row) {
                task.other = {static_cast<char*>(b->data), 1, b->ne[0], 0};
                task.period = b->ne[0];
                touch(task, b, false);
            } else {
                as_rows(b, dims, &task.other);
                touch(task, task.other, false);
            }
        }
    }
    touch(task, task.out, true);
    tasks_.push_back(task);
}

// Rows into the cache, or from among others.
void Planner::add_rows(const Tensor* op) {
    Planned task = {{op->op == ggml::kOpSetRows ? Kind::store : Kind::look_up, op}};
    as_rows(op->src[0], 1, &task.x);
    as_rows(op, 1, &task.out);
    const int64_t count = op->src[1]->ne[0];
    task.cut = {count, task.x.columns, 0};
    task.unit = count <= kFewTokens ? kRowUnit : 0;
    if (task.kind == Kind::store || task.unit != 0)
        touch(task, task.x, false);
    else
        touch(task, op->src[0], false);  // which rows they are is not known
    touch(task, op->src[1], false);
    if (task.kind == Kind::store)
        touch(task, op, true);
    else
        touch(task, task.out, true);
    tasks_.push_back(task);
}

void Planner::add(const Tensor* op) {
    switch (op->op) {
        case ggml::kOpMulMat: return add_multiplication(op);
        case ggml::kOpMulMatId: return add_other(Kind::experts, op, experts_scratch_size(experts_of(op), threads_));
        case ggml::kOpFlashAttnExt:
            return add_other(Kind::attention, op, attention_scratch_size(attention_of(op), threads_));
        case ggml::kOpRope: return add_rotation(op);
        case ggml::kOpGetRows:
        case ggml::kOpSetRows: return add_rows(op);
        default: return add_elementwise(op);
    }
}

// What was quantized is not used again once there is something else in its place.
void Planner::forget_overwritten(const Tensor* op) {
    for (Quantized& held : held_)
        if (held.x != nullptr && overlap(op, held.x)) held.x = nullptr;
}

// Whether both are cut, and at the same places: then no thread touches what another one does.
bool Planner::same_cut(const Access& a, const Cut& cut_a, const Access& b, const Cut& cut_b) const {
    const bool same_rows = a.row_bytes != 0 && a.row_bytes == b.row_bytes && a.begin == b.begin && a.end == b.end &&
                           a.stride == b.stride && cut_a.columns == cut_b.columns;
    if (!same_rows || (cut_a.unit == 0) != (cut_b.unit == 0)) return false;
    if (cut_a.unit == 0) return cut_a.rows == cut_b.rows;
    for (int i = 1; i < threads_ && cut_a.unit != cut_b.unit; ++i)
        if (boundary(cut_a.columns, cut_a.unit, i, threads_) != boundary(cut_b.columns, cut_b.unit, i, threads_))
            return false;
    return true;
}

// Where the producer of what it reads was cut, if it can be cut there.
void Planner::choose_cut(size_t index, size_t stage) {
    Planned& task = tasks_[index];
    if (task.unit == 0) return;
    const int64_t usual = usual_unit(task.cut.columns, threads_);
    task.cut.unit = usual % task.unit == 0 ? usual : task.unit;
    if (task.kind == Kind::multiply) return;
    for (size_t i = index; i-- > stage;) {
        const Planned& before = tasks_[i];
        if (before.cut.unit == 0 || before.cut.columns != task.cut.columns) continue;
        for (int j = 0; j < before.accesses; ++j) {
            const Access& made = before.access[j];
            if (!made.write || made.row_bytes == 0 || made.begin != task.access[0].begin) continue;
            for (int k = 1; k < threads_; ++k)
                if (boundary(before.cut.columns, before.cut.unit, k, threads_) % task.unit != 0) return;
            task.cut.unit = before.cut.unit;
            return;
        }
    }
}

bool Planner::must_wait(size_t index, size_t stage) const {
    const Planned& task = tasks_[index];
    for (size_t i = stage; i < index; ++i) {
        const Planned& before = tasks_[i];
        for (int j = 0; j < before.accesses; ++j)
            for (int k = 0; k < task.accesses; ++k) {
                if (task.prepared && before.kind == Kind::experts && k + 1 == task.accesses) continue;
                const Access &a = before.access[j], &b = task.access[k];
                if (conflict(a, b) && !same_cut(a, before.cut, b, task.cut)) return true;
            }
    }
    return false;
}

void Planner::place_barriers() {
    size_t stage = 0;  // the first task after the latest barrier
    for (size_t i = 0; i < tasks_.size(); ++i) {
        choose_cut(i, stage);
        if (!must_wait(i, stage)) continue;
        tasks_[i].wait = true;
        stage = i;
        choose_cut(i, stage);
    }
}

void Planner::place_scratch(Plan* plan) {
    size_t start[kRegions];
    for (int i = 0; i < kRegions; ++i) {
        start[i] = plan->scratch_bytes;
        plan->scratch_bytes += round_up(sizes_[i]);
    }
    for (Task& task : tasks_) {
        const bool other = task.kind == Kind::experts || task.kind == Kind::attention || task.kind == Kind::multiply_slices;
        task.scratch = start[other ? int{kOther} : static_cast<int>(task.scratch)];
        task.tables += start[kAngles];
        plan->barriers += task.wait;
    }
}

Plan Planner::plan(const Graph* graph, std::vector<Task> tasks) {
    const auto computed = [&](int i) {
        const Tensor* op = graph->nodes[i];
        return !is_nothing(op) && !is_empty(op) && (op->flags & ggml::kFlagCompute) != 0;
    };
    for (int i = 0; i < graph->n_nodes; ++i) {
        const Tensor* op = graph->nodes[i];
        if (!computed(i)) continue;
        if (op->op != ggml::kOpRmsNorm) {
            add(op);
            forget_overwritten(op);
            continue;
        }
        int next = i + 1;
        while (next < graph->n_nodes && !computed(next)) ++next;
        const Tensor* product = next < graph->n_nodes ? graph->nodes[next] : nullptr;
        const bool fused = product != nullptr && product->op == ggml::kOpMul && product->src[0] == op &&
                           product->src[1] != op && is_one_row(product->src[1]) && fits_over(product, op->src[0]);
        add_norm(op, fused ? product : nullptr);
        forget_overwritten(op);
        if (fused) forget_overwritten(product);
        if (fused) i = next;
    }
    place_barriers();
    Plan plan;
    plan.threads = threads_;
    place_scratch(&plan);
    plan.tasks = std::move(tasks);
    plan.tasks.assign(tasks_.begin(), tasks_.end());
    return plan;
}

}  // namespace

Cut::Part Cut::part(int member, int size) const {
    if (unit == 0) return {rows * member / size, rows * (member + 1) / size, 0, columns};
    return {0, rows, boundary(columns, unit, member, size), boundary(columns, unit, member + 1, size)};
}

Plan make_plan(const Graph* graph, int threads, std::vector<Task> tasks) {
    // A graph of a new width comes every few steps, and memory that is new to the process costs as much as planning.
    thread_local std::vector<Planned> room;
    return Planner(threads < 1 ? 1 : threads, room).plan(graph, std::move(tasks));
}

const Plan& Plans::of(const Graph* graph, int threads) {
    for (auto known = known_.begin(); known != known_.end() && graph->uid != 0; ++known) {
        if (known->uid != graph->uid || known->plan.threads != threads) continue;
        known_.splice(known_.begin(), known_, known);
        return known->plan;
    }
    if (!known_.empty() && known_.front().uid == 0) forget(known_.begin());
    known_.push_front({graph->uid, make_plan(graph, threads, std::move(forgotten_))});
    tasks_ += known_.front().plan.tasks.size() + 1;
    while (tasks_ > kKnownTasks && known_.size() > 1) forget(std::prev(known_.end()));
    return known_.front().plan;
}

void Plans::forget(std::list<Known>::iterator known) {
    tasks_ -= known->plan.tasks.size() + 1;
    forgotten_ = std::move(known->plan.tasks);
    known_.erase(known);
}

}  // namespace specx
