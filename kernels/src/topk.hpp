// The largest entries of a row of logits, without sorting the row.
//
// The row is read as rows of 16 lanes. A first pass keeps the maximum of every *column*: one lane of some
// consecutive vectors, so that a pass is one vector operation for each vector and nothing is reduced across
// lanes. The k-th largest maximum is then a lower bound of the k-th largest entry, so only the few columns
// that reach it are looked at again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

// One binary for every x86-64: the loader picks the variant. All of them compute the same bits, because
// the loops they are put on are elementwise and contraction to fused multiply-add is off (CMakeLists.txt).
// The loader's part is glibc's, known since <algorithm>.
#if defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define SPECX_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SPECX_VECTOR_CLONES
#endif

struct Token {
    float logit;
    int32_t id;
};

// Decreasing logit, ties to the lower id.
inline bool more_likely(const Token& a, const Token& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

constexpr int kLanes = 16;

// Maxima of the columns of x (n,): lane j of `depth` vectors from vector i * depth on goes to
// maxima[i * kLanes + j]. The last column may be short, or empty (-inf). NaN counts as -inf.
void column_maxima(const float* x, int n, int depth, float* maxima);

// A row of logits with the maxima of its columns. Entries that are NaN or -inf do not exist for it.
class ColumnRow {
  public:
    ColumnRow(const float* x, int n, int depth)
        : x_(x), n_(n), depth_(depth), maxima_((size_t(n) + depth * kLanes - 1) / (depth * kLanes) * kLanes) {
        column_maxima(x, n, depth, maxima_.data());
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
        for (size_t first = 0; first < maxima_.size(); first += kLanes) {
            int lanes[kLanes], count = 0;
            for (int j = 0; j < kLanes; ++j) {
                lanes[count] = j;
                count += maxima_[first + j] >= floor;
            }
            if (count == 0) continue;
            const int begin = static_cast<int>(first) * depth_, end = std::min(n_, begin + depth_ * kLanes);
            for (int i = begin; i < end; i += kLanes)
                for (int j = 0; j < count && i + lanes[j] < end; ++j)
                    if (x_[i + lanes[j]] >= floor) found.push_back({x_[i + lanes[j]], i + lanes[j]});
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
    // The k-th largest maximum, -inf if there are fewer columns.
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
    int n_, depth_;
    std::vector<float> maxima_;
};

// Columns short enough that there are several times k of them, and long enough to be few.
inline int column_depth(int n, int k) { return static_cast<int64_t>(k) * 256 <= n ? 64 : 16; }

// The k largest of a row into ids and values (k,), by decreasing value, ties to the lower id. Entries that are
// NaN or -inf are never among them. Returns how many there are, at most k.
inline int topk(const ColumnRow& row, int k, int32_t* ids, float* values) {
    const std::vector<Token> found = row.top(k);
    for (size_t i = 0; i < found.size(); ++i) {
        ids[i] = found[i].id;
        values[i] = found[i].logit;
    }
    return static_cast<int>(found.size());
}

// The rows of one forward call, (rows, n). The maxima of a row are computed when it is first asked for: choosing
// a token and keeping the best continuations read the row once between them, and most of the time that takes
// is that of fetching it.
class LogitRows {
  public:
    static constexpr int kUsual = 64;  // most tokens that are usually asked for

    LogitRows(const float* x, size_t rows, int n) : x_(x), n_(n), rows_(rows) {}

    size_t size() const { return rows_.size(); }
    int vocab_size() const { return n_; }
    const float* data(size_t i) const { return x_ + i * static_cast<size_t>(n_); }

    const ColumnRow& operator[](size_t i) {
        if (!rows_[i]) rows_[i].emplace(data(i), n_, column_depth(n_, kUsual));
        return *rows_[i];
    }

  private:
    const float* x_;
    int n_;
    std::vector<std::optional<ColumnRow>> rows_;
};
