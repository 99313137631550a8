#include "isa.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace specx {
namespace {

constexpr const char* kNames[kIsaCount] = {"generic",      "avx2",      "avx_vnni", "avx512_vnni",
                                           "neon_dotprod", "neon_i8mm", "amx_int8"};
// Fastest first.
constexpr Isa kPreference[kIsaCount] = {Isa::amx_int8, Isa::avx512_vnni, Isa::avx_vnni, Isa::avx2,
                                        Isa::neon_i8mm, Isa::neon_dotprod, Isa::generic};

#if defined(__x86_64__) || defined(__i386__)

struct Cpuid {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool bit(unsigned word, int n) { return word >> n & 1; }

// The register state the operating system saves: a processor's instructions are no use without.
unsigned saved_state() {
    if (!bit(Cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Linux gives a process the tile registers when it asks for them (arch_prctl ARCH_REQ_XCOMP_PERM, XTILEDATA).
bool tiles_permitted() {
#if defined(__linux__) && defined(__x86_64__)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

bool processor_has(Isa isa) {
    constexpr unsigned kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
    const unsigned state = saved_state();
    const Cpuid basic(1, 0), features(7, 0), more(7, 1);
    const bool avx2 = (state & kYmm) == kYmm && bit(basic.ecx, 12) && bit(basic.ecx, 29) && bit(features.ebx, 5);
    const bool avx512 = avx2 && (state & kZmm) == kZmm && bit(features.ebx, 16) && bit(features.ebx, 17) &&
                        bit(features.ebx, 30) && bit(features.ebx, 31) && bit(features.ecx, 11);
    switch (isa) {
        case Isa::generic: return true;
        case Isa::avx2: return avx2;
        case Isa::avx_vnni: return avx2 && bit(more.eax, 4);
        case Isa::avx512_vnni: return avx512;
        case Isa::amx_int8:
            return avx512 && (state & kTiles) == kTiles && bit(features.edx, 24) && bit(features.edx, 25) &&
                   tiles_permitted();
        default: return false;
    }
}

#elif defined(__aarch64__) && defined(__linux__)

bool processor_has(Isa isa) {
    switch (isa) {
        case Isa::generic: return true;
        case Isa::neon_dotprod: return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
        case Isa::neon_i8mm:                                           // HWCAP2_I8MM
            return (getauxval(AT_HWCAP) >> 20 & 1) && (getauxval(AT_HWCAP2) >> 13 & 1);
        default: return false;
    }
}

#elif defined(__aarch64__) && defined(__APPLE__)

bool feature(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool processor_has(Isa isa) {
    switch (isa) {
        case Isa::generic: return true;
        case Isa::neon_dotprod: return feature("hw.optional.arm.FEAT_DotProd");
        case Isa::neon_i8mm: return feature("hw.optional.arm.FEAT_DotProd") && feature("hw.optional.arm.FEAT_I8MM");
        default: return false;
    }
}

#else

bool processor_has(Isa isa) { return isa == Isa::generic; }

#endif

Isa decide() {
    Isa best = Isa::generic;
    for (int i = kIsaCount - 1; i >= 0; --i)
        if (isa_available(kPreference[i])) best = kPreference[i];
    const char* wanted = std::getenv("SPECX_ISA");
    if (wanted == nullptr || *wanted == '\0') return best;
    for (int i = 0; i < kIsaCount; ++i)
        if (std::strcmp(kNames[i], wanted) == 0 && isa_available(static_cast<Isa>(i))) return static_cast<Isa>(i);
    std::fprintf(stderr, "notice: SPECX_ISA=%s is not available here, using %s\n", wanted, isa_name(best));
    return best;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const Kernels* kernels_of(Isa isa) {
    switch (isa) {
        case Isa::generic: return generic_kernels();
        case Isa::avx2: return avx2_kernels();
        case Isa::avx_vnni: return avx_vnni_kernels();
        case Isa::avx512_vnni: return avx512_vnni_kernels();
        case Isa::neon_dotprod: return neon_dotprod_kernels();
        case Isa::neon_i8mm: return neon_i8mm_kernels();
        case Isa::amx_int8: return amx_int8_kernels();
    }
    return nullptr;
}

bool isa_available(Isa isa) {
    // Asked once each: cpuid is slow under a hypervisor. The processor first, for a file's code (the making of its
    // table included) may use the instructions it is for.
    static const struct Available {
        bool is[kIsaCount];
        Available() {
            for (int i = 0; i < kIsaCount; ++i) {
                const Isa isa = static_cast<Isa>(i);
                is[i] = processor_has(isa) && kernels_of(isa) != nullptr;
            }
        }
    } available;
    const int i = static_cast<int>(isa);
    return i >= 0 && i < kIsaCount && available.is[i];
}

Isa best_isa() {
    static const Isa best = decide();
    return best;
}

}  // namespace specx
