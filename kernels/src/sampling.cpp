// Keyed-noise sampling: the token at a position is the argmax of logit / temperature + Gumbel noise over the
// kept tokens, where the noise depends on (seed, position, token id) and on nothing else.
//
// The noise is described in noise.hpp. sampling_reference.py says the same in NumPy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "bound_drafts.hpp"
#include "bound_rows.hpp"
#include "noise.hpp"
#include "topk.hpp"

namespace nb = nanobind;

namespace {

// The noise of one position.
struct Noise {
    uint64_t seed, position;

    double gumbel(int32_t id) const { return gumbel_noise(seed, position, id); }
};

struct Scored {
    double score;
    int32_t id;
};

bool better(const Scored& a, const Scored& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// exp(y) for y <= 0 by basic arithmetic alone, so that every vector width gives the same bits: relative
// error under 1e-15. Everything below -708 counts as -708 (3e-308, nothing beside the weight 1 of the most
// likely token), NaN too.
inline double exp_nonpositive(double y) {
    y = y > -708.0 ? y : -708.0;
    const double rounder = 0x1.8p52;
    const double shifted = y * 1.4426950408889634 + rounder;
    const double k = shifted - rounder;
    const double r = (y - k * 0x1.62e42fefa38p-1) - k * 0x1.ef35793c7673p-45;
    double e = 1.0 / 6227020800.0;
    e = e * r + 1.0 / 479001600.0;
    e = e * r + 1.0 / 39916800.0;
    e = e * r + 1.0 / 3628800.0;
    e = e * r + 1.0 / 362880.0;
    e = e * r + 1.0 / 40320.0;
    e = e * r + 1.0 / 5040.0;
    e = e * r + 1.0 / 720.0;
    e = e * r + 1.0 / 120.0;
    e = e * r + 1.0 / 24.0;
    e = e * r + 1.0 / 6.0;
    e = e * r + 0.5;
    e = e * r + 1.0;
    e = e * r + 1.0;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return e * power;
}

constexpr int kWeights = 256;  // weights computed in one go

// Sum of exp(x - max) over x (n,), NaN and -inf adding nothing. Eight running sums in a fixed order, so the
// result does not depend on the vector width.
SPECX_VECTOR_CLONES
static double total_weight(const float* x, int n, float max) {
    constexpr int kSums = 8;
    typedef double Pair __attribute__((vector_size(16)));  // wider ones are slow where they have to be taken apart
    Pair sums[kSums / 2] = {};
    for (int begin = 0; begin < n; begin += kWeights) {
        double weight[kWeights] = {};
        const int m = std::min(kWeights, n - begin);
        for (int i = 0; i < m; ++i) weight[i] = exp_nonpositive(double(x[begin + i]) - max);
        for (int i = 0; i < kWeights; i += kSums) {
            for (int j = 0; j < kSums / 2; ++j) {
                Pair next;
                std::memcpy(&next, weight + i + 2 * j, sizeof next);
                sums[j] += next;
            }
        }
    }
    double total = 0.0;
    for (int j = 0; j < kSums; ++j) total += sums[j / 2][j % 2];
    return total;
}

// Truncations by mass order tokens by a key, the smaller the sooner, ties to the lower id. Sums of weights
// over buckets of keys find where the mass is reached; only the tokens of that bucket are sorted.
struct Share {
    double key, weight;
    Token token;
};

bool sooner(const Share& a, const Share& b) {
    return a.key < b.key || (a.key == b.key && a.token.id < b.token.id);
}

constexpr int kBuckets = 1024;
constexpr double kBucketsPerUnit = 16.0;

inline int bucket_of(double key) { return int(std::min(key * kBucketsPerUnit, kBuckets - 1.0)); }

// Adds exp(x - max) of x (n,) to the sums (kBuckets,) of the buckets of max - x.
SPECX_VECTOR_CLONES
static void add_weights(const float* x, int n, float max, double* sums) {
    for (int begin = 0; begin < n; begin += kWeights) {
        double weight[kWeights];
        int32_t bucket[kWeights];
        const int m = std::min(kWeights, n - begin);
        for (int i = 0; i < m; ++i) {
            const double distance = double(max) - x[begin + i];
            weight[i] = exp_nonpositive(-distance);
            bucket[i] = bucket_of(distance < kBuckets ? distance : kBuckets);  // NaN too
        }
        for (int i = 0; i < m; ++i) sums[bucket[i]] += weight[i];
    }
}

struct Mass {
    double target;
    bool strictly;  // the mass must exceed the target, not just reach it
    bool reached_by(double mass) const { return strictly ? mass > target : mass >= target; }
};

// Follows everything, so nothing is left out after it.
constexpr Share kEnd = {std::numeric_limits<double>::infinity(), 0.0, {0.0f, 0}};

// The bucket in which the sums of weights (kBuckets,) reach the mass, kBuckets if none; the mass before it.
int boundary_bucket(const std::vector<double>& sums, const Mass& mass, double& before) {
    before = 0.0;
    int bucket = 0;
    while (bucket < kBuckets && !mass.reached_by(before + sums[bucket])) before += sums[bucket++];
    return bucket;
}

// The token of the boundary bucket with which the mass is reached.
Share last_of_bucket(std::vector<Share> shares, const Mass& mass, double before) {
    std::sort(shares.begin(), shares.end(), sooner);
    for (const Share& s : shares) {
        before += s.weight;
        if (mass.reached_by(before)) return s;
    }
    return shares.back();  // summed in this order, the mass can round to just below the target
}

// The last token of the shortest sequence of `shares`, by key, that reaches the mass; kEnd if all do not.
Share last_within(const std::vector<Share>& shares, const Mass& mass) {
    std::vector<double> sums(kBuckets, 0.0);
    for (const Share& s : shares) sums[bucket_of(s.key)] += s.weight;
    double before;
    const int boundary = boundary_bucket(sums, mass, before);
    if (boundary == kBuckets) return kEnd;
    std::vector<Share> near;
    for (const Share& s : shares)
        if (bucket_of(s.key) == boundary) near.push_back(s);
    if (near.empty()) return *std::min_element(shares.begin(), shares.end(), sooner);  // target below 0
    return last_of_bucket(std::move(near), mass, before);
}

template <class Condition>
void erase_if(std::vector<Token>& tokens, Condition condition) {
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), condition), tokens.end());
}

float largest(const std::vector<Token>& tokens) {
    return std::min_element(tokens.begin(), tokens.end(), more_likely)->logit;
}

std::vector<Share> shares_by_logit(const std::vector<Token>& tokens, float max) {
    std::vector<Share> shares;
    shares.reserve(tokens.size());
    for (const Token& t : tokens) {
        const double distance = double(max) - t.logit;
        shares.push_back({distance, exp_nonpositive(-distance), t});
    }
    return shares;
}

// Top-p (Holtzman et al. 2020) for tokens that hold the most likely ones of a distribution with this total
// weight: keeps the shortest prefix with p of the whole mass, or all of them if they have less.
void keep_top_p(std::vector<Token>& tokens, double p, double total) {
    const float max = largest(tokens);
    const Share last = last_within(shares_by_logit(tokens, max), {p * total, false});
    erase_if(tokens, [&](const Token& t) { return sooner(last, {double(max) - t.logit, 0.0, t}); });
}

double weight_of(const std::vector<Token>& tokens) {
    const float max = largest(tokens);
    double total = 0.0;
    for (const Token& t : tokens) total += exp_nonpositive(double(t.logit) - max);
    return total;
}

// Locally typical sampling (Meister et al. 2023): keeps the tokens whose surprise is nearest to the entropy.
void keep_typical(std::vector<Token>& tokens, double p) {
    std::vector<Share> shares = shares_by_logit(tokens, largest(tokens));
    double total = 0.0, spread = 0.0;
    for (const Share& s : shares) total += s.weight;
    for (const Share& s : shares) spread += s.weight * s.key;
    // surprise - entropy = (distance + log total) - (mean distance + log total)
    for (Share& s : shares) s.key = std::fabs(s.key - spread / total);
    const Share last = last_within(shares, {p * total, true});
    tokens.clear();
    for (const Share& s : shares)
        if (!sooner(last, s)) tokens.push_back(s.token);
}

// Smallest logit that min-p keeps: probability at least min_p of the largest one.
float min_p_threshold(float max, double min_p) {
    const double exact = std::min(double(max), double(max) + std::log(min_p));
    const float rounded = float(exact);
    return rounded < exact ? std::nextafter(rounded, max) : rounded;
}

struct Truncation {
    int top_k;
    double top_p, min_p, typical_p;
};

// The tokens left after truncation: those listed, or (too many to list) all that are not less likely than
// `last`.
struct Kept {
    std::vector<Token> tokens;
    bool listed;
    Token last;
};

constexpr Token kNoLimit = {-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};
constexpr size_t kListLimit = 4096;  // scoring a longer list takes more time than scanning the row

Kept scan_from(const Token& last) { return {{}, false, last}; }
Kept list_of(std::vector<Token> tokens) { return {std::move(tokens), true, kNoLimit}; }

// Top-p of a whole row.
Kept keep_top_p_of_row(const ColumnRow& row, const float* x, int n, float max, double p) {
    std::vector<double> sums(kBuckets, 0.0);
    add_weights(x, n, max, sums.data());
    double total = 0.0, before;
    for (const double sum : sums) total += sum;
    const Mass mass = {p * total, false};
    const int boundary = boundary_bucket(sums, mass, before);
    // One bucket further than the boundary, so that rounding leaves nothing out.
    const bool everything = boundary >= kBuckets - 2;
    std::vector<Token> tokens =
        row.at_least(everything ? kNoLimit.logit : float(max - (boundary + 2) / kBucketsPerUnit));
    std::vector<Share> near;
    for (const Token& t : tokens) {
        const double key = double(max) - t.logit;
        if (bucket_of(key) == boundary) near.push_back({key, exp_nonpositive(-key), t});
    }
    const Share last = near.empty() ? kEnd : last_of_bucket(std::move(near), mass, before);
    if (tokens.size() > kListLimit) return scan_from(std::isinf(last.key) ? kNoLimit : last.token);
    erase_if(tokens, [&](const Token& t) { return sooner(last, {double(max) - t.logit, 0.0, t}); });
    return list_of(std::move(tokens));
}

// Top-k, typical-p, top-p, min-p, in llama.cpp's order, each on the softmax of what the one before kept.
Kept truncate(const ColumnRow& row, const float* x, int n, float max, const Truncation& by) {
    const bool typical = by.typical_p < 1.0, top_p = by.top_p < 1.0, min_p = by.min_p > 0.0;
    std::vector<Token> tokens;
    if (std::isinf(max)) {  // +inf: a softmax with nothing else in it
        tokens = row.at_least(max);
        if (by.top_k > 0) tokens.resize(std::min(tokens.size(), size_t(by.top_k)));
        return list_of(std::move(tokens));
    }
    double total = 0.0;
    if ((by.top_k > 0 && by.top_k < n) || typical) {
        tokens = by.top_k > 0 && by.top_k < n ? row.top(by.top_k) : row.at_least(kNoLimit.logit);
        if (typical) keep_typical(tokens, by.typical_p);
        if (top_p) total = weight_of(tokens);
    } else {
        if (!min_p) return top_p ? keep_top_p_of_row(row, x, n, max, by.top_p) : scan_from(kNoLimit);
        if (top_p) total = total_weight(x, n, max);
        const float threshold = min_p_threshold(max, by.min_p);
        tokens = row.at_least(threshold);
        if (!top_p && tokens.size() > kListLimit)
            return scan_from({threshold, std::numeric_limits<int32_t>::max()});
    }
    if (top_p) keep_top_p(tokens, by.top_p, total);
    if (min_p) {
        const float threshold = min_p_threshold(largest(tokens), by.min_p);
        erase_if(tokens, [&](const Token& t) { return t.logit < threshold; });
    }
    return list_of(std::move(tokens));
}

// The best `count` of the tokens offered so far.
class Leaders {
  public:
    explicit Leaders(size_t count) : count_(count) {}

    bool full() const { return heap_.size() == count_; }
    double worst() const { return heap_.front().score; }

    void offer(const Scored& s) {
        if (full()) {
            if (!better(s, heap_.front())) return;
            std::pop_heap(heap_.begin(), heap_.end(), better);
            heap_.back() = s;
        } else {
            heap_.push_back(s);
        }
        std::push_heap(heap_.begin(), heap_.end(), better);
    }

    std::vector<Scored> sorted() && {
        std::sort_heap(heap_.begin(), heap_.end(), better);
        return std::move(heap_);
    }

  private:
    size_t count_;
    std::vector<Scored> heap_;  // the worst in front
};

std::vector<Scored> best_of(std::vector<Scored> scored, size_t count) {
    if (count < scored.size()) {
        std::nth_element(scored.begin(), scored.begin() + count, scored.end(), better);
        scored.resize(count);
    }
    std::sort(scored.begin(), scored.end(), better);
    return scored;
}

std::vector<Scored> rank_list(const std::vector<Token>& tokens, const Noise& noise, double temperature,
                              size_t count) {
    std::vector<Scored> scored;
    scored.reserve(tokens.size());
    for (const Token& t : tokens)
        scored.push_back({temperature > 0 ? t.logit / temperature + noise.gumbel(t.id) : t.logit, t.id});
    return best_of(std::move(scored), count);
}

constexpr int kChunk = 512;  // tokens looked at in one go by `contenders`

// Which of the kChunk tokens from id `first` (a multiple of 4) on may score above a bound. A token does if its
// exponential variate -log(u) is below exp(logit / temperature - bound) =: 2^t. Since -log(u) > 1 - u, it is
// enough to compare the upper half of the random bits with an upper bound of 2^t: 2^k (1 + f) for t = k + f,
// which is what the bits of (t + 127) * 2^23 mean as a float. t = (x - max) * slope + offset.
// One Philox block has the upper halves of four tokens, which is what makes looking at all of them cheap.
SPECX_VECTOR_CLONES
static uint32_t contenders(const float* x, float max, float slope, float offset, uint32_t first,
                           const Noise& noise, uint32_t* may_win) {
    uint32_t upper[kChunk];
    for (uint32_t i = 0; i < kChunk / 4; ++i) {
        const auto words = philox(noise.seed, noise.position, first / 4 + i, kNoiseDomain);
        for (int j = 0; j < 4; ++j) upper[4 * i + j] = words[j];
    }
    uint32_t any = 0;
    for (int i = 0; i < kChunk; ++i) {
        float t = (x[i] - max) * slope + offset;
        t = t > -64.0f ? t : -64.0f;  // NaN too
        t = t < 1.0f ? t : 1.0f;
        const int32_t bits = int32_t((t + 127.0f) * 0x1p23f);
        float limit;
        std::memcpy(&limit, &bits, sizeof limit);
        const float rest = float(int32_t(~upper[i] >> 1)) * 0x1p-31f;
        may_win[i] = rest <= limit;
        any |= may_win[i];
    }
    return any;
}

// Ranks the tokens of a row that are not less likely than `last`. The most likely ones are scored first;
// after that hardly any other can still win, and only those that can are scored.
std::vector<Scored> rank_row(const ColumnRow& row, const float* x, int n, float max, const Token& last,
                             const Noise& noise, double temperature, size_t count) {
    constexpr double kLog2E = 1.4426950408889634, kSlack = 0.01, kMaxOffset = 1e4;
    const size_t first_look = std::max<size_t>(2 * count, 32);
    if (temperature <= 0 || first_look * 8 > size_t(n)) {
        // Without noise the most likely tokens are the best ones, and no others are needed.
        std::vector<Token> tokens = temperature <= 0 ? row.top(int(count)) : row.at_least(last.logit);
        erase_if(tokens, [&](const Token& t) { return more_likely(last, t); });
        return rank_list(tokens, noise, temperature, count);
    }
    const std::vector<Token> likely = row.top(int(first_look));
    const auto score = [&](const Token& t) -> Scored {
        return {t.logit / temperature + noise.gumbel(t.id), t.id};
    };
    Leaders leaders(count);
    for (const Token& t : likely)
        if (!more_likely(last, t)) leaders.offer(score(t));
    // Tokens left out here are fewer than first_look: the likely ones were all there are.
    if (likely.size() < first_look || !leaders.full()) return std::move(leaders).sorted();
    const float slope = float(std::min(kLog2E / temperature, 1e30));
    uint32_t may_win[kChunk];
    float padded[kChunk];
    for (int begin = 0; begin < n; begin += kChunk) {
        const float* chunk = x + begin;
        if (n - begin < kChunk) {
            std::fill(std::copy(chunk, x + n, padded), padded + kChunk, kNoLimit.logit);
            chunk = padded;
        }
        const double offset = (max / temperature - leaders.worst()) * kLog2E + kSlack;
        const bool bounded = offset < kMaxOffset;  // beyond it, single precision bounds nothing
        if (bounded && !contenders(chunk, max, slope, float(offset), uint32_t(begin), noise, may_win)) continue;
        for (int i = 0; i < std::min(kChunk, n - begin); ++i) {
            const Token t = {chunk[i], begin + i};
            if ((bounded && !may_win[i]) || !(t.logit > kNoLimit.logit)) continue;
            if (more_likely(likely.back(), t) && !more_likely(last, t)) leaders.offer(score(t));
        }
    }
    return std::move(leaders).sorted();
}

// `row` has the maxima of x (n,).
std::vector<Scored> rank(const ColumnRow& row, const float* x, int n, const Noise& noise, double temperature,
                         const Truncation& by, size_t count) {
    if (count == 0) throw std::invalid_argument("count must be at least 1");
    const float max = row.max();
    if (!(max > kNoLimit.logit)) throw std::invalid_argument("no token has a logit above -inf");
    const Kept kept = truncate(row, x, n, max, by);
    if (kept.listed) return rank_list(kept.tokens, noise, temperature, count);
    return rank_row(row, x, n, max, kept.last, noise, temperature, count);
}

using Ids = Shared<const int32_t, nb::ndim<1>>;
using Row = Shared<const float, nb::ndim<1>>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> array_of(size_t n, T*& data) {
    data = new T[n];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, {n}, owner);
}

nb::ndarray<nb::numpy, double, nb::ndim<1>> gumbel(uint64_t seed, uint64_t position, const Ids& ids) {
    double* out;
    auto result = array_of<double>(ids.shape(0), out);
    {
        const nb::gil_scoped_release released;
        const Noise noise{seed, position};
        for (size_t i = 0; i < ids.shape(0); ++i) out[i] = noise.gumbel(ids.data()[i]);
    }
    return result;
}

nb::tuple ranked(const std::vector<Scored>& best) {
    int32_t* ids;
    double* scores;
    auto id_array = array_of<int32_t>(best.size(), ids);
    auto score_array = array_of<double>(best.size(), scores);
    for (size_t i = 0; i < best.size(); ++i) {
        ids[i] = best[i].id;
        scores[i] = best[i].score;
    }
    return nb::make_tuple(id_array, score_array);
}

nb::tuple rank_tokens(const Row& logits, uint64_t seed, uint64_t position, double temperature, int top_k,
                      double top_p, double min_p, double typical_p, size_t count) {
    std::vector<Scored> best;
    {
        const nb::gil_scoped_release released;
        const int n = static_cast<int>(logits.shape(0));
        const ColumnRow row(logits.data(), n, column_depth(n, top_k > 0 ? top_k : LogitRows::kUsual));
        best = rank(row, logits.data(), n, {seed, position}, temperature, {top_k, top_p, min_p, typical_p}, count);
    }
    return ranked(best);
}

const ColumnRow& row_of(BoundRows& self, size_t i) {
    if (i >= self.rows.size()) throw std::out_of_range("there are not so many rows");
    return self.rows[i];
}

int32_t argmax(BoundRows& self, size_t i) {
    const ColumnRow& row = row_of(self, i);
    const std::vector<Token> best = row.at_least(row.max());
    return best.empty() ? -1 : best.front().id;
}

std::vector<Scored> best_of_row(BoundRows& self, size_t i, const Noise& noise, double temperature,
                                const Truncation& by, size_t count) {
    const ColumnRow& usual = row_of(self, i);
    const float* x = self.rows.data(i);
    const int n = self.rows.vocab_size();
    const int depth = column_depth(n, std::max(by.top_k, LogitRows::kUsual));
    if (depth == column_depth(n, LogitRows::kUsual)) return rank(usual, x, n, noise, temperature, by, count);
    return rank(ColumnRow(x, n, depth), x, n, noise, temperature, by, count);
}

nb::tuple rank_row_of(BoundRows& self, size_t i, uint64_t seed, uint64_t position, double temperature, int top_k,
                      double top_p, double min_p, double typical_p, size_t count) {
    return ranked(best_of_row(self, i, {seed, position}, temperature, {top_k, top_p, min_p, typical_p}, count));
}

bool contains(nb::handle stops, int32_t token) {
    const int found = PySet_Contains(stops.ptr(), nb::int_(token).ptr());
    if (found < 0) nb::raise_python_error();
    return found == 1;
}

std::pair<std::vector<int32_t>, std::vector<size_t>> descend(BoundRows& self, const BoundDraft& draft,
                                                             nb::handle stops, uint64_t seed, uint64_t position,
                                                             double temperature, int top_k, double top_p,
                                                             double min_p, double typical_p) {
    require(self.rows.size() > draft.nodes.size(), "logits need one row for the root and one for each node");
    const Truncation by{top_k, top_p, min_p, typical_p};
    std::vector<int32_t> tokens;
    std::vector<size_t> rows;
    for (size_t row = 0;; ++position) {
        int32_t token = temperature <= 0 ? argmax(self, row) : -1;
        // The text may end before that: it is told when a step begins there.
        if (token < 0 && !tokens.empty() && !(row_of(self, row).max() > kNoLimit.logit))
            return {std::move(tokens), std::move(rows)};
        if (token < 0) token = best_of_row(self, row, {seed, position}, temperature, by, 1).front().id;
        tokens.push_back(token);
        rows.push_back(row);
        row = child_row(draft.nodes, row, token);
        if (row == 0 || contains(stops, token)) return {std::move(tokens), std::move(rows)};
    }
}

}  // namespace

void bind_sampling(nb::module_& m) {
    using namespace nb::literals;
    m.def("gumbel", &gumbel, "seed"_a, "position"_a, "ids"_a,
          "Gumbel noise (m,) float64 of token ids (m,) int32: a function of (seed, position, id) only.");
    m.def("rank_tokens", &rank_tokens, "logits"_a.noconvert(), "seed"_a, "position"_a, "temperature"_a,
          "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "count"_a,
          "The best `count` kept tokens, (m,) int32 ids and (m,) float64 scores, by decreasing score.");
    nb::class_<BoundRows>(m, "LogitRows")
        .def(nb::init<BoundRows::Array>(), nb::arg("logits").noconvert())
        .def("argmax", &argmax, "row"_a)
        .def("rank", &rank_row_of, "row"_a, "seed"_a, "position"_a, "temperature"_a, "top_k"_a, "top_p"_a,
             "min_p"_a, "typical_p"_a, "count"_a)
        .def("descend", &descend, "draft"_a, "stops"_a, "seed"_a, "position"_a, "temperature"_a, "top_k"_a, "top_p"_a,
             "min_p"_a, "typical_p"_a);
}
