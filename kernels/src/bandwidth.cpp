// How fast this machine reads memory: what decoding one token is bounded by.
#include <nanobind/nanobind.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "side_by_side.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr size_t kLine = 64 / sizeof(uint64_t);  // words of a cache line
constexpr size_t kLines = 8;
constexpr size_t kPage = size_t{2} << 20;     // bytes of a large page
constexpr size_t kAhead = 8192 / 64 * kLine;  // words: what multiplication fetches ahead

// One word of each line, in independent sums: the loads and not the additions are what takes time.
template <bool kFetch>
uint64_t touch(const uint64_t* words, size_t n) {
    uint64_t sums[kLines] = {};
    for (size_t i = 0; i + kLine * kLines <= n; i += kLine * kLines)
        for (size_t j = 0; j < kLines; ++j) {
            if (kFetch) __builtin_prefetch(words + i + j * kLine + kAhead);
            sums[j] += words[i + j * kLine];
        }
    uint64_t total = 0;
    for (uint64_t part : sums) total += part;
    return total;
}

uint64_t read_all(const uint64_t* words, size_t n, int threads, bool fetch) {
    std::vector<uint64_t> totals(static_cast<size_t>(threads));
    const size_t share = n / static_cast<size_t>(threads) / kLine * kLine;
    side_by_side(totals.size(), [&](size_t i) {
        totals[i] = (fetch ? touch<true> : touch<false>)(words + i * share, share);
    });
    uint64_t total = 0;
    for (uint64_t part : totals) total += part;
    return total;
}

// Memory in large pages, where the system has such, as packed weights are.
struct Free {
    void operator()(uint64_t* words) const { ::operator delete(words, std::align_val_t{kPage}); }
};

std::unique_ptr<uint64_t[], Free> in_large_pages(size_t bytes) {
    const size_t whole = (bytes + kPage - 1) / kPage * kPage;
    auto* words = static_cast<uint64_t*>(::operator new(whole, std::align_val_t{kPage}));
#ifdef MADV_HUGEPAGE
    madvise(words, whole, MADV_HUGEPAGE);
#endif
    return std::unique_ptr<uint64_t[], Free>(words);
}

// Bytes a second. Fetching ahead by hand is faster on some processors, and slower on others: half of the
// repeats do.
double read_bandwidth(size_t bytes, int threads, int repeats) {
    if (threads < 1 || repeats < 1 || bytes < size_t{1} << 20)
        throw std::invalid_argument("at least one thread, one repeat and a megabyte are needed");
    const size_t n = bytes / sizeof(uint64_t);
    nb::gil_scoped_release release;
    const std::unique_ptr<uint64_t[], Free> words = in_large_pages(bytes);
    std::memset(words.get(), 1, n * sizeof(uint64_t));  // pages that were never written share one page of zeros
    double best = 0;
    volatile uint64_t sink = 0;
    for (int i = 0; i < 2 * repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        sink = sink + read_all(words.get(), n, threads, i % 2 == 0);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        const double rate = static_cast<double>(n * sizeof(uint64_t)) / took.count();
        if (rate > best) best = rate;
    }
    return best;
}

}  // namespace

void bind_bandwidth(nb::module_& m) { m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "threads"_a, "repeats"_a); }
