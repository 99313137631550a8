// The instruction sets the multiplication kernels come in, and which of them this machine has.
#pragma once

namespace specx {

// Every variant computes the same bits: integer dot products are exact, and the float operations on them
// are the same fused multiply-adds in the same order. The numbers are part of the C interface of the tests.
enum class Isa {
    generic = 0,  // plain C++, for any processor; the yardstick of the tests
    avx2 = 1,
    avx_vnni = 2,
    avx512_vnni = 3,
    neon_dotprod = 4,
    neon_i8mm = 5,
    amx_int8 = 6,  // AVX-512 VNNI for few tokens, AMX tiles for many
};
constexpr int kIsaCount = 7;

// "avx2", "avx512_vnni", ...
const char* isa_name(Isa isa);

// Whether both this build and this processor (and operating system) have it. Thread-safe, cheap.
bool isa_available(Isa isa);

// The fastest available one. The environment variable SPECX_ISA=<name> asks for another; a name that is
// unknown or not available here is reported once on stderr and ignored. Decided once per process.
Isa best_isa();

}  // namespace specx
