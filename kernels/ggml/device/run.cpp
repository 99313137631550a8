// How the tasks of a plan are done, by each member of a team.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "float_matmul.hpp"
#include "matmul.hpp"
#include "plan.hpp"
#include "weights.hpp"

namespace specx {
namespace {

using ggml::Tensor;

// A part of the work, and who does it.
struct Member {
    const RowKernels& kernels;
    char* scratch;
    Team* team;
    int index, size;
    bool as_planned;  // whether the team is as large as the plan was made for

    // A cut that suits a task with the planned team alone is not made with another.
    Cut::Part part_of(const Task& task) const {
        Cut cut = task.cut;
        if (!as_planned) cut.unit = task.unit;
        return cut.part(index, size);
    }
};

float* row_of(const Rows& rows, int64_t row, int64_t column = 0) {
    return reinterpret_cast<float*>(rows.start + row * rows.stride) + column;
}

float parameter(const Tensor* op, int i) {
    float value;
    std::memcpy(&value, op->op_params + i, sizeof value);
    return value;
}

// Call `work(x, other, out, n)` for stretches of n columns of each row; `other` is null where there is none.
template <class Work>
void each_stretch(const Task& task, const Cut::Part& part, Work work) {
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
        for (int64_t at = part.first; at < part.last;) {
            int64_t end = part.last, from = at;
            if (task.period > 0) {
                from = at % task.period;
                end = std::min(end, at - from + task.period);
            }
            const float* other = task.other.start == nullptr ? nullptr : row_of(task.other, row, from);
            work(row_of(task.x, row, at), other, row_of(task.out, row, at), end - at);
            at = end;
        }
    }
}

void compute_elementwise(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    const RowKernels& k = member.kernels;
    const Tensor* op = task.op;
    switch (task.kind) {
        case Kind::add:
            return each_stretch(task, part, [&](auto x, auto other, auto out, auto n) { k.add(n, x, other, out); });
        case Kind::scale_rows:
            return each_stretch(task, part, [&](auto x, auto other, auto out, auto n) { k.multiply(n, x, other, out); });
        case Kind::scale:
            return each_stretch(task, part, [&](auto x, auto, auto out, auto n) {
                k.scale(n, x, parameter(op, 0), parameter(op, 1), out);
            });
        case Kind::activate:
            return each_stretch(task, part, [&](auto x, auto, auto out, auto n) {
                k.activate(activation_of(op), n, x, out);
            });
        default:
            return each_stretch(task, part, [&](auto x, auto other, auto out, auto n) {
                k.gate(activation_of(op), n, x, other, out);
            });
    }
}

// The weights of a norm; null without.
const float* norm_weights(const Task& task) {
    return task.product != nullptr ? static_cast<const float*>(task.product->src[1]->data) : nullptr;
}

// Where the norm without its weights is kept; null where nobody reads it, as the product is in its place.
float* unweighted(const Task& task, int64_t row, int64_t column) {
    return task.product == nullptr || task.other.start == task.out.start ? nullptr : row_of(task.other, row, column);
}

void compute_squares(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    if (part.first >= part.last) return;
    auto* sums = reinterpret_cast<float*>(member.scratch + task.scratch);
    for (int64_t row = part.first_row; row < part.last_row; ++row)
        member.kernels.squares(part.last - part.first, row_of(task.x, row, part.first),
                               sums + (row * task.cut.columns + part.first) / kRowUnit);
}

void compute_normalization(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    if (part.first >= part.last) return;
    const auto* sums = reinterpret_cast<const float*>(member.scratch + task.scratch);
    const float* weights = norm_weights(task);
    const int64_t n = task.cut.columns, at = part.first;
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
        const float factor = norm_factor(n, sums + row * n / kRowUnit, parameter(task.op, 0));
        member.kernels.normalize(part.last - at, row_of(task.x, row, at), factor,
                                 weights != nullptr ? weights + at : nullptr, unweighted(task, row, at),
                                 row_of(task.out, row, at));
    }
}

void compute_norm(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    const int64_t n = task.op->ne[0];
    const float* weights = norm_weights(task);
    float sums[kLongestNorm / kRowUnit];
    for (int64_t row = part.first_row; row < part.last_row; ++row)
        for (int64_t at = part.first; at < part.last; at += n) {
            member.kernels.squares(n, row_of(task.x, row, at), sums);
            const float factor = norm_factor(n, sums, parameter(task.op, 0));
            member.kernels.normalize(n, row_of(task.x, row, at), factor, weights, unweighted(task, row, at),
                                     row_of(task.out, row, at));
        }
}

void compute_angles(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    const Rotation rotation = rotation_of(task.op);
    auto* table = reinterpret_cast<float*>(member.scratch + task.tables);
    const auto* positions = static_cast<const int32_t*>(task.op->src[1]->data);
    for (int64_t i = part.first_row; i < part.last_row; ++i)
        rotation_table(rotation, positions[i], table + i * 2 * rotation.dims);
}

void compute_rotation(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    const Tensor* op = task.op;
    const int64_t head = op->ne[0], dims = op->op_params[1];
    const bool halves = op->op_params[2] == ggml::kRopeHalves;
    const auto rotate = halves ? member.kernels.rotate_halves : member.kernels.rotate_neighbours;
    const auto* tables = reinterpret_cast<const float*>(member.scratch + task.tables);
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
        const float* table = tables + row * op->ne[2] / task.cut.rows * 2 * dims;
        for (int64_t at = part.first; at < part.last; at += head) {
            const float* x = row_of(task.x, row, at);
            float* out = row_of(task.out, row, at);
            rotate(dims, x, table, out);
            if (out != x && dims < head) std::memcpy(out + dims, x + dims, (head - dims) * sizeof(float));
        }
    }
}

int64_t index_at(const Tensor* indices, int64_t i) {
    if (indices->type == ggml::kTypeI64) return static_cast<const int64_t*>(indices->data)[i];
    return static_cast<const int32_t*>(indices->data)[i];
}

void compute_rows(const Task& task, const Member& member) {
    const Cut::Part part = member.part_of(task);
    const int64_t at = part.first, n = part.last - at;
    if (n <= 0) return;
    for (int64_t row = part.first_row; row < part.last_row; ++row) {
        const int64_t index = index_at(task.op->src[1], row);
        if (task.kind == Kind::store) {
            char* out = static_cast<char*>(task.op->data) + index * task.op->nb[1];
            member.kernels.to_half(n, row_of(task.x, row, at), reinterpret_cast<uint16_t*>(out) + at);
        } else {
            std::memcpy(row_of(task.out, row, at), row_of(task.x, index, at), n * sizeof(float));
        }
    }
}

void quantize(const Task& task, const Member& member) {
    const Tensor* w = task.op->src[0];
    const auto* x = reinterpret_cast<const float*>(task.x.start);
    char* scratch = member.scratch + task.scratch;
    if (task.unit == 0)
        return quantize_rows(w->type, w->ne[0], task.x.count, x, task.x.stride, scratch, member.index, member.size);
    const Cut::Part part = member.part_of(task);
    quantize_blocks(w->type, w->ne[0], task.x.count, x, task.x.stride, scratch, part.first / 32, part.last / 32);
}

void multiply_cut(const Task& task, const Member& member) {
    const Tensor* w = task.op->src[0];
    const Cut::Part part = member.part_of(task);
    multiply_groups(w->type, w->ne[0], w->ne[1], task.out.count, packed_matrix(w, 0), member.scratch + task.scratch,
                    reinterpret_cast<float*>(task.out.start), task.op->nb[1], part.first / kGroupRows,
                    (part.last + kGroupRows - 1) / kGroupRows);
}

void multiply_slices(const Task& task, const Member& member) {
    const Tensor *op = task.op, *w = op->src[0], *x = op->src[1];
    char* scratch = member.scratch + task.scratch;
    for (int64_t slice = 0; slice < x->ne[2] * x->ne[3]; ++slice) {
        const int64_t i2 = slice % x->ne[2], i3 = slice / x->ne[2];
        const char* rows = static_cast<const char*>(x->data) + i2 * x->nb[2] + i3 * x->nb[3];
        char* out = static_cast<char*>(op->data) + i2 * op->nb[2] + i3 * op->nb[3];
        if (slice > 0) team_barrier(member.team);  // the scratch memory is still being read
        quantize_rows(w->type, w->ne[0], x->ne[1], reinterpret_cast<const float*>(rows), x->nb[1], scratch,
                      member.index, member.size);
        team_barrier(member.team);
        multiply(w->type, w->ne[0], w->ne[1], x->ne[1], packed_matrix(w, 0), scratch, reinterpret_cast<float*>(out),
                 op->nb[1], member.index, member.size);
    }
}

void multiply_floats(const Tensor* op, const Member& member) {
    const Tensor *w = op->src[0], *x = op->src[1];
    multiply_floats(best_isa(), w->type, w->ne[0], w->ne[1], x->ne[1] * x->ne[2] * x->ne[3], w->data, w->nb[1], x->data,
                    x->nb[1], op->data, op->nb[1], member.index, member.size);
}

void compute(const Task& task, const Member& member) {
    char* scratch = member.scratch + task.scratch;
    switch (task.kind) {
        case Kind::quantize: return quantize(task, member);
        case Kind::multiply: return multiply_cut(task, member);
        case Kind::multiply_slices: return multiply_slices(task, member);
        case Kind::multiply_floats: return multiply_floats(task.op, member);
        case Kind::experts:
            return multiply_experts(experts_of(task.op), !task.prepared, scratch, member.team, member.index, member.size);
        case Kind::attention:
            return attention(best_isa(), attention_of(task.op), scratch, member.team, member.index, member.size);
        case Kind::angles: return compute_angles(task, member);
        case Kind::rotate: return compute_rotation(task, member);
        case Kind::squares: return compute_squares(task, member);
        case Kind::normalize: return compute_normalization(task, member);
        case Kind::norm: return compute_norm(task, member);
        case Kind::store:
        case Kind::look_up: return compute_rows(task, member);
        default: return compute_elementwise(task, member);
    }
}

struct Job {
    const Plan& plan;
    char* scratch;
    const Abort& abort;
    std::atomic<size_t> end;  // the task that nobody begins any more, nor those after it
};

// OpenMP may give a smaller team than the plan was made for, which waits everywhere. The first member asks whether to go
// on; the others learn it at the barrier, by the number of the task, as the answer at the next one may come before they
// have read it.
void run_tasks(void* argument, Team* team, int index, int size) {
    Job& job = *static_cast<Job*>(argument);
    const bool as_planned = size == job.plan.threads;
    const Member member = {row_kernels(best_isa()), job.scratch, team, index, size, as_planned};
    for (size_t i = 0; i < job.plan.tasks.size(); ++i) {
        const Task& task = job.plan.tasks[i];
        if (task.wait || !as_planned) {
            if (index == 0 && job.abort.wanted()) job.end.store(i);
            team_barrier(team);
            if (i >= job.end.load()) return;
        }
        compute(task, member);
    }
}

}  // namespace

bool run(const Plan& plan, char* scratch, const Abort& abort) {
    Job job = {plan, scratch, abort, {plan.tasks.size()}};
    if (!plan.tasks.empty()) team_run(plan.threads, run_tasks, &job);
    return job.end.load() == plan.tasks.size();
}

}  // namespace specx
