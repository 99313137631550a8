// The largest entries of a row of logits, without sorting the row.
//
// A first pass keeps the maximum of every block of the row, which the compiler turns into vector code. The
// k-th largest block maximum is then a lower bound of the k-th largest entry, so only the few blocks that
// reach it are looked at again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

// One binary for every x86-64: the loader picks the variant. All of them compute the same bits, because
// the loops they are put on are elementwise and contraction to fused multiply-add is off (CMakeLists.txt).
// The loader's part is glibc's, known since <algorithm>.
#if defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define SPECX_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SPECX_VECTOR_CLONES
#endif

namespace {

struct Token {
    float logit;
    int32_t id;
};

// Decreasing logit, ties to the lower id.
inline bool more_likely(const Token& a, const Token& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// Maxima of the blocks of `width` entries (a multiple of kLanes) of x (n,); the last block may be short.
// NaN counts as -inf. `maxima` holds (n + width - 1) / width entries.
SPECX_VECTOR_CLONES
static void block_maxima(const float* x, int n, int width, float* maxima) {
    const float lowest = -std::numeric_limits<float>::infinity();
    const int full = n / width;
    for (int block = 0; block < full; ++block, x += width) {
        Lanes best = lowest - Lanes{};
        for (int i = 0; i < width; i += kLanes) {
            Lanes next;
            std::memcpy(&next, x + i, sizeof next);
            best = next > best ? next : best;
        }
        float lane[kLanes];
        std::memcpy(lane, &best, sizeof lane);
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int j = 0; j < half; ++j) lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
        maxima[block] = lane[0];
    }
    if (full * width < n) {
        float best = lowest;
        for (int i = 0; i < n - full * width; ++i) best = x[i] > best ? x[i] : best;
        maxima[full] = best;
    }
}

// A row of logits with its block maxima. Entries that are NaN or -inf do not exist for it.
class BlockedRow {
  public:
    BlockedRow(const float* x, int n, int width)
        : x_(x), n_(n), width_(width), maxima_((static_cast<size_t>(n) + width - 1) / width) {
        block_maxima(x, n, width, maxima_.data());
    }

    float max() const {
        float best = -std::numeric_limits<float>::infinity();
        for (const float m : maxima_) best = m > best ? m : best;
        return best;
    }

    // Every entry that is at least `threshold`, in order of id.
    std::vector<Token> at_least(float threshold) const {
        // -inf itself must not pass, so the smallest finite float is the lowest threshold there is.
        const float floor = std::max(threshold, std::numeric_limits<float>::lowest());
        std::vector<Token> found;
        for (size_t block = 0; block < maxima_.size(); ++block) {
            if (!(maxima_[block] >= floor)) continue;
            const int begin = static_cast<int>(block) * width_;
            const int end = std::min(n_, begin + width_);
            for (int i = begin; i < end; ++i)
                if (x_[i] >= floor) found.push_back({x_[i], i});
        }
        return found;
    }

    // The k most likely entries (fewer if there are not that many), most likely first.
    std::vector<Token> top(int k) const {
        if (k <= 0) return {};
        std::vector<Token> found = at_least(kth_maximum(static_cast<size_t>(k)));
        const size_t m = std::min(found.size(), static_cast<size_t>(k));
        if (m < found.size()) std::nth_element(found.begin(), found.begin() + m, found.end(), more_likely);
        found.resize(m);
        std::sort(found.begin(), found.end(), more_likely);
        return found;
    }

  private:
    // The k-th largest block maximum, -inf if there are fewer blocks.
    float kth_maximum(size_t k) const {
        if (k > maxima_.size()) return -std::numeric_limits<float>::infinity();
        if (k <= 128) {
            std::vector<float> best(k);
            std::partial_sort_copy(maxima_.begin(), maxima_.end(), best.begin(), best.end(),
                                   std::greater<float>());
            return best.back();
        }
        std::vector<float> ordered = maxima_;
        std::nth_element(ordered.begin(), ordered.begin() + (k - 1), ordered.end(), std::greater<float>());
        return ordered[k - 1];
    }

    const float* x_;
    int n_, width_;
    std::vector<float> maxima_;
};

// Blocks narrow enough that there are several times k of them, and wide enough to be few.
inline int block_width(int n, int k) { return static_cast<int64_t>(k) * 256 <= n ? 64 : 16; }

// The k largest of x (n,) into ids and values (k,), by decreasing value, ties to the lower id. Entries that
// are NaN or -inf are never among them. Returns how many there are, at most k.
inline int topk(const float* x, int n, int k, int32_t* ids, float* values) {
    const std::vector<Token> found = BlockedRow(x, n, block_width(n, k)).top(k);
    for (size_t i = 0; i < found.size(); ++i) {
        ids[i] = found[i].id;
        values[i] = found[i].logit;
    }
    return static_cast<int>(found.size());
}

}  // namespace
