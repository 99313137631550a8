// What the layers of experts need, for the tests, through ctypes.
#include <cstdint>
#include <cstdlib>

#include "experts.hpp"
#include "float_matmul.hpp"
#include "matmul.hpp"

#define SPECX_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Job {
    const specx::Experts *first, *second;
    void* scratch;
};

void work(void* argument, specx::Team* team, int member, int size) {
    const Job& job = *static_cast<const Job*>(argument);
    specx::multiply_experts(*job.first, true, job.scratch, team, member, size);
    if (job.second != nullptr) specx::multiply_experts(*job.second, false, job.scratch, team, member, size);
}

}  // namespace

// `second` may be null. Returns 0 if there is no memory.
SPECX_EXPORT int specx_experts_multiply(const specx::Experts* first, const specx::Experts* second, int threads) {
    Job job = {first, second, nullptr};
    if (posix_memalign(&job.scratch, specx::kAlignment, specx::experts_scratch_size(*first, threads)) != 0) return 0;
    specx::team_run(threads, work, &job);
    std::free(job.scratch);
    return 1;
}

SPECX_EXPORT void specx_float_multiply(int isa, int type, int64_t k, int64_t rows, int64_t n, const void* w, uint64_t w_stride,
                                       const void* x, uint64_t x_stride, void* out, uint64_t out_stride, int ith,
                                       int nth) {
    specx::multiply_floats(static_cast<specx::Isa>(isa), type, k, rows, n, w, w_stride, x, x_stride, out, out_stride,
                           ith, nth);
}
