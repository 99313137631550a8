// Runs the kernels on every instruction set of the machine, in memory that ends where it must and by teams of threads.
// Prints the instruction sets, and a digest of the results that are the same on every machine.
#include "check.hpp"

int main() {
    if (!check_matmul() || !check_floats() || !check_attention() || !check_rows() || !check_plan()) return 1;
    for (int i = 0; i < specx::kIsaCount; ++i)
        if (isa_available(static_cast<specx::Isa>(i))) std::printf("%s ", isa_name(static_cast<specx::Isa>(i)));
    std::printf("\n%016llx\n", static_cast<unsigned long long>(digest));
    return 0;
}
