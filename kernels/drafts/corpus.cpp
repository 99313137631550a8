#include "corpus.hpp"

#include <algorithm>

// Rows of `at` whose next token is `token`; they are sorted by it.
Corpus::Match Corpus::extend(const Match& at, int32_t token) const {
    const auto bound = [&](int32_t low, bool beyond) {
        int32_t high = at.last;
        while (low < high) {
            const int32_t middle = low + (high - low) / 2;
            const int32_t next = token_at(middle, at.length);
            if (next < token || (beyond && next == token))
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    };
    const int32_t first = bound(at.first, false);
    if (first == at.last || token_at(first, at.length) != token) return {};
    return {first, bound(first, true), at.length + 1};
}

// Rows that begin with the `length` tokens of `pattern` and `token`.
Corpus::Match Corpus::find(const int32_t* pattern, int32_t length, int32_t token) const {
    Match at{0, size_, 0};
    for (int32_t i = 0; i < length && at.last > at.first; ++i) at = extend(at, pattern[i]);
    return at.last > at.first ? extend(at, token) : Match{};
}

Corpus::Match Corpus::advance(const Match& at, int32_t token) const {
    if (token < 0 || size_ == 0) return {};
    if (at.length > 0) {
        const Match longer = extend(at, token);
        if (longer.length > 0) return longer;
    }
    // What occurs with a string before it occurs without it: the longest suffix is found by halving.
    const int32_t begin = at.length > 0 ? suffixes_[at.first] : 0;
    if (begin < 0 || begin > size_ - at.length) return {};
    const int32_t* end = tokens_ + begin + at.length;
    Match best = find(end, 0, token);
    int32_t known = 0, least_unknown = std::min(at.length, kLongest);
    while (best.length > 0 && known + 1 < least_unknown) {
        const int32_t length = known + (least_unknown - known) / 2;
        const Match found = find(end - length, length, token);
        if (found.length > 0) {
            best = found;
            known = length;
        } else {
            least_unknown = length;
        }
    }
    return best;
}

int Corpus::continuations(const Match& at, Continuation* out) const {
    const int64_t rows = at.last - at.first, samples = std::min<int64_t>(rows, kSamples);
    int n = 0;
    int32_t token = kSeparator;
    int run = 0;
    const auto take = [&] {  // the run of `token` has ended
        if (token < 0) return;
        const Continuation found{token, static_cast<float>(run) / static_cast<float>(samples)};
        int place = n;
        while (place > 0 && out[place - 1].share < found.share) --place;
        if (place == kContinuations) return;
        n = std::min(n + 1, kContinuations);
        for (int i = n - 1; i > place; --i) out[i] = out[i - 1];
        out[place] = found;
    };
    for (int64_t i = 0; i < samples; ++i) {
        const int64_t row = rows <= kSamples ? i : (2 * i + 1) * rows / (2 * kSamples);
        const int32_t next = token_at(at.first + static_cast<int32_t>(row), at.length);
        if (next != token) {
            take();
            token = next;
            run = 0;
        }
        ++run;
    }
    take();
    return n;
}
