// How fast this machine reads memory: what decoding one token is bounded by.
#include <nanobind/nanobind.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr size_t kLine = 64 / sizeof(uint64_t);  // words of a cache line
constexpr size_t kLines = 8;

// One word of each line, in independent sums: the loads and not the additions are what takes time.
uint64_t touch(const uint64_t* words, size_t n) {
    uint64_t sums[kLines] = {};
    for (size_t i = 0; i + kLine * kLines <= n; i += kLine * kLines)
        for (size_t j = 0; j < kLines; ++j) sums[j] += words[i + j * kLine];
    uint64_t total = 0;
    for (uint64_t part : sums) total += part;
    return total;
}

uint64_t read_all(const uint64_t* words, size_t n, int threads) {
    std::vector<uint64_t> totals(static_cast<size_t>(threads));
    std::vector<std::thread> team;
    const size_t share = n / static_cast<size_t>(threads) / kLine * kLine;
    for (size_t i = 0; i < totals.size(); ++i)
        team.emplace_back([&, i] { totals[i] = touch(words + i * share, share); });
    for (std::thread& member : team) member.join();
    uint64_t total = 0;
    for (uint64_t part : totals) total += part;
    return total;
}

double read_bandwidth(size_t bytes, int threads, int repeats) {
    if (threads < 1 || repeats < 1 || bytes < size_t{1} << 20)
        throw std::invalid_argument("at least one thread, one repeat and a megabyte are needed");
    const size_t n = bytes / sizeof(uint64_t);
    nb::gil_scoped_release release;
    std::unique_ptr<uint64_t[]> words(new uint64_t[n]);
    std::memset(words.get(), 1, n * sizeof(uint64_t));  // pages that were never written share one page of zeros
    double best = 0;
    volatile uint64_t sink = 0;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        sink = sink + read_all(words.get(), n, threads);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        const double rate = static_cast<double>(n * sizeof(uint64_t)) / took.count();
        if (rate > best) best = rate;
    }
    return best;
}

}  // namespace

void bind_bandwidth(nb::module_& m) { m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "threads"_a, "repeats"_a); }
