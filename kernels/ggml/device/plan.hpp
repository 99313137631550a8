// What a graph, or a piece of one, comes to: tasks that all threads go through together, with as few barriers as their
// accesses to memory allow.
//
// A task on a few tokens is cut by columns: each thread has the same stretch of every row. Where one task reads what
// another wrote, and both are cut at the same places, each thread reads what it wrote itself and no barrier is needed:
// gate and up, the activation and the quantization of its result are one stretch of work. What is in conflict otherwise
// (in-place results and memory that is used again included) waits at a barrier, so any graph is computed correctly
// whatever its order. Where tokens are many, tasks that go row by row are cut by tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

#include "ggml_abi.hpp"
#include "support.hpp"
#include "threads.hpp"

namespace specx {

enum class Kind {
    quantize,         // activations, into scratch memory
    multiply,         // packed weights with quantized activations
    multiply_slices,  // the same where rows are unevenly spaced: one slice after the other, quantized here
    multiply_floats,
    experts,
    attention,
    angles,  // of the rotary embedding, for all tokens
    rotate,
    add,
    scale_rows,  // elementwise product
    scale,
    activate,
    gate,
    squares,    // the sums a norm needs
    normalize,  // by those sums
    norm,       // both, where each thread has whole rows
    store,      // rows into the cache
    look_up,
};

// Where the work on `rows` rows of `columns` is cut: the same stretch of columns of all rows for each thread, at multiples
// of `unit`, or, if `unit` is 0, rows.
struct Cut {
    int64_t rows = 0, columns = 0, unit = 0;

    struct Part {
        int64_t first_row, last_row, first, last;  // the last ones excluded
    };
    Part part(int member, int size) const;
};

struct Task {
    Kind kind;
    const ggml::Tensor* op;
    const ggml::Tensor* product = nullptr;  // of a norm with its weights, computed with it
    Rows x = {}, other = {}, out = {};      // of tasks that go row by row; see run.cpp
    int64_t period = 0;                     // columns after which `other` begins again; 0: it has as many as x
    Cut cut = {};
    int64_t unit = 0;        // smallest unit of the cut; 0: not cut
    size_t scratch = 0;      // where its memory begins, from the start of all
    size_t tables = 0;       // the same of angles
    bool wait = false;       // for the other threads, before it
    bool prepared = false;   // experts: what the task before prepared is used again
};

struct Plan {
    int threads = 1;
    std::vector<Task> tasks;
    size_t scratch_bytes = 0;
    int64_t barriers = 0;
};

// `tasks`: memory that becomes that of the plan's.
Plan make_plan(const ggml::Graph* graph, int threads, std::vector<Task> tasks = {});

// The plans of graphs that were computed before.
class Plans {
  public:
    const Plan& of(const ggml::Graph* graph, int threads);
    size_t tasks() const { return tasks_; }  // of all that are kept

  private:
    struct Known {
        uint64_t uid;
        Plan plan;
    };
    void forget(std::list<Known>::iterator known);

    std::list<Known> known_;  // the latest first
    size_t tasks_ = 0;
    std::vector<Task> forgotten_;  // of the last plan that was: the next one has its memory
};

// ggml's way to end a computation: whether `callback`, if there is one, says so.
struct Abort {
    bool (*callback)(void* data) = nullptr;
    void* data = nullptr;

    bool wanted() const { return callback != nullptr && callback(data); }
};

// Compute it with a team of threads. `scratch`: plan.scratch_bytes, aligned to kAlignment. `abort` is asked at each
// barrier, by the thread that calls; false if it ended the computation.
bool run(const Plan& plan, char* scratch, const Abort& abort = {});

}  // namespace specx
