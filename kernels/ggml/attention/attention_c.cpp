// Attention for the tests, through ctypes.
#include <cstdlib>

#include "attention.hpp"
#include "threads.hpp"

namespace {

struct Call {
    specx::Isa isa;
    const specx::Attention* op;
    void* scratch;
};

void run(void* argument, specx::Team* team, int member, int size) {
    const auto* call = static_cast<const Call*>(argument);
    specx::attention(call->isa, *call->op, call->scratch, team, member, size);
}

}  // namespace

// 0 if done, 1 if the operation is not supported, 2 without memory.
extern "C" __attribute__((visibility("default"))) int specx_attention(int isa, const specx::Attention* op,
                                                                      int threads) {
    if (!specx::attention_supported(*op)) return 1;
    void* scratch = nullptr;
    if (posix_memalign(&scratch, 64, specx::attention_scratch_size(*op, threads)) != 0) return 2;
    Call call = {static_cast<specx::Isa>(isa), op, scratch};
    specx::team_run(threads, run, &call);
    std::free(scratch);
    return 0;
}
