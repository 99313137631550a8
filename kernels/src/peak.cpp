// How many operations on integers of 8 bits this machine does in a second: what a wide step is bounded by.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "side_by_side.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int kSums = 10;  // independent ones: as many as the latency of an instruction asks for, and registers hold
constexpr double kSeconds = 0.02;       // that one repetition takes
constexpr int64_t kFirst = int64_t{1} << 14;  // turns, to find out how many that are

struct Loop {
    int64_t (*run)(int64_t turns);
    double operations;  // of a turn; a multiplication and an addition are two
};

// A turn multiplies with each of the sums once, from registers only. The barriers keep the compiler from seeing
// that the factors are always the same.
int64_t generic_turns(int64_t turns) {
    alignas(64) int8_t a[256], b[256];
    for (int i = 0; i < 256; ++i) a[i] = static_cast<int8_t>(i), b[i] = 1;
    int32_t total = 0;
    for (int64_t turn = 0; turn < turns; ++turn) {
        asm volatile("" : : "r"(a), "r"(b) : "memory");
        int32_t sum = 0;
        for (int i = 0; i < 256; ++i) sum += static_cast<int16_t>(a[i]) * b[i];
        total += sum;
    }
    return total;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) int64_t avx2_turns(int64_t turns) {
    __m256i sums[kSums], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1);
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_setzero_si256();
    for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            asm volatile("" : "+x"(a));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    int64_t total = 0;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total += _mm256_extract_epi32(sums[i], 0);
    return total;
}

__attribute__((target("avx2,avxvnni"))) int64_t avx_vnni_turns(int64_t turns) {
    __m256i sums[kSums], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_setzero_si256();
    for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            asm volatile("" : "+x"(a));
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
        }
    int64_t total = 0;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total += _mm256_extract_epi32(sums[i], 0);
    return total;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t avx512_vnni_turns(int64_t turns) {
    __m512i sums[kSums], a = _mm512_set1_epi32(0x03030303), b = _mm512_set1_epi32(0x01010101);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_setzero_si512();
    for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            asm volatile("" : "+v"(a));
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        }
    int64_t total = 0;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total += _mm512_cvtsi512_si32(sums[i]);
    return total;
}
#elif defined(__aarch64__)
__attribute__((target("arch=armv8.2-a+dotprod"))) int64_t neon_turns(int64_t turns) {
    int32x4_t sums[kSums];
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(1);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = vdupq_n_s32(0);
    for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            asm volatile("" : "+w"(a));
            sums[i] = vdotq_s32(sums[i], a, b);
        }
    int64_t total = 0;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total += vgetq_lane_s32(sums[i], 0);
    return total;
}

__attribute__((target("arch=armv8.6-a+i8mm"))) int64_t i8mm_turns(int64_t turns) {
    int32x4_t sums[kSums];
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(1);
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = vdupq_n_s32(0);
    for (int64_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 10
        for (int i = 0; i < kSums; ++i) {
            asm volatile("" : "+w"(a));
            sums[i] = vmmlaq_s32(sums[i], a, b);
        }
    int64_t total = 0;
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) total += vgetq_lane_s32(sums[i], 0);
    return total;
}
#endif

// The loop of an instruction set by its name in the device (ggml/device/isa.cpp). Whoever names one that this
// machine does not have has not asked the device.
Loop loop_of(const std::string& name) {
    if (name == "generic") return {generic_turns, 512};
#if defined(__x86_64__)
    if (name == "avx2" && __builtin_cpu_supports("avx2")) return {avx2_turns, 64.0 * kSums};
    // GCC 11 has no name for AVX-VNNI here; where the device uses it, it is there.
    if (name == "avx_vnni" && __builtin_cpu_supports("avx2")) return {avx_vnni_turns, 64.0 * kSums};
    if (name == "avx512_vnni" && __builtin_cpu_supports("avx512vnni")) return {avx512_vnni_turns, 128.0 * kSums};
#elif defined(__aarch64__)
    if (name == "neon_dotprod") return {neon_turns, 32.0 * kSums};
    if (name == "neon_i8mm") return {i8mm_turns, 64.0 * kSums};
#endif
    return {nullptr, 0};
}

double seconds_of(const Loop& loop, int64_t turns, int threads) {
    std::vector<int64_t> totals(static_cast<size_t>(threads));
    const auto start = std::chrono::steady_clock::now();
    side_by_side(totals.size(), [&](size_t i) { totals[i] = loop.run(turns); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    volatile int64_t sink = 0;
    for (int64_t total : totals) sink = sink + total;
    return took.count();
}

double integer_peak(const std::string& instructions, int threads, int repeats) {
    if (threads < 1 || repeats < 1) throw std::invalid_argument("at least one thread and one repeat are needed");
    const Loop loop = loop_of(instructions);
    if (loop.run == nullptr) return 0;
    nb::gil_scoped_release release;
    double least = seconds_of(loop, kFirst, 1);
    for (int i = 0; i < 3; ++i) least = std::min(least, seconds_of(loop, kFirst, 1));
    const auto turns = static_cast<int64_t>(static_cast<double>(kFirst) * std::max(1.0, kSeconds / least));
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        const double work = loop.operations * static_cast<double>(turns) * threads;
        best = std::max(best, work / seconds_of(loop, turns, threads));
    }
    return best;
}

}  // namespace

void bind_peak(nb::module_& m) {
    m.def("integer_peak", &integer_peak, "instructions"_a, "threads"_a, "repeats"_a);
}
