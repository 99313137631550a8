// Suffix arrays by induced sorting: SA-IS, Nong, Zhang and Chan 2009, in the form of the AtCoder Library (CC0).
//
// A suffix is small if it is less than the one after it, else large; a leftmost small one follows a large one.
// Once the leftmost small suffixes are sorted, one pass sorts the large ones and one the small ones.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "corpus.hpp"

namespace {

using Ints = std::vector<int32_t>;

class InducedSort {
  public:
    InducedSort(const Ints& text, int32_t largest)
        : text_(text),
          n_(static_cast<int32_t>(text.size())),
          small_(text.size()),
          order_(text.size()),
          large_begin_(static_cast<size_t>(largest) + 2),
          small_begin_(static_cast<size_t>(largest) + 2) {
        for (int32_t i = n_ - 2; i >= 0; --i)
            small_[at(i)] = value(i) == value(i + 1) ? small_[at(i + 1)] : value(i) < value(i + 1);
        for (int32_t i = 0; i < n_; ++i) {
            if (small_[at(i)])
                ++large_begin_[at(value(i)) + 1];
            else
                ++small_begin_[at(value(i))];
        }
        for (size_t v = 0; v + 1 < small_begin_.size(); ++v) {
            small_begin_[v] += large_begin_[v];
            large_begin_[v + 1] += small_begin_[v];
        }
    }

    Ints sorted() {
        Ints number(static_cast<size_t>(n_) + 1, -1), leftmost;  // of the leftmost small suffixes
        for (int32_t i = 1; i < n_; ++i) {
            if (!small_[at(i)] || small_[at(i - 1)]) continue;
            number[at(i)] = static_cast<int32_t>(leftmost.size());
            leftmost.push_back(i);
        }
        induce(leftmost);
        if (!leftmost.empty()) {
            Ints ordered;
            for (const int32_t i : order_)
                if (number[at(i)] >= 0) ordered.push_back(i);
            induce(ranked(leftmost, ordered, number));
        }
        return std::move(order_);
    }

  private:
    static size_t at(int32_t i) { return static_cast<size_t>(i); }
    int32_t value(int32_t i) const { return text_[at(i)]; }

    // Sorts all suffixes from the order of the leftmost small ones.
    void induce(const Ints& leftmost) {
        std::fill(order_.begin(), order_.end(), -1);
        Ints next = small_begin_;
        for (const int32_t i : leftmost) order_[at(next[at(value(i))]++)] = i;
        next = large_begin_;
        order_[at(next[at(value(n_ - 1))]++)] = n_ - 1;
        for (int32_t row = 0; row < n_; ++row) {
            const int32_t i = order_[at(row)];
            if (i >= 1 && !small_[at(i - 1)]) order_[at(next[at(value(i - 1))]++)] = i - 1;
        }
        next = large_begin_;
        for (int32_t row = n_ - 1; row >= 0; --row) {
            const int32_t i = order_[at(row)];
            if (i >= 1 && small_[at(i - 1)]) order_[at(--next[at(value(i - 1)) + 1])] = i - 1;
        }
    }

    // The leftmost small suffixes in order; `ordered` are they by their beginnings, up to the next one.
    Ints ranked(const Ints& leftmost, const Ints& ordered, const Ints& number) const {
        const auto end = [&](int32_t i) {
            const size_t after = at(number[at(i)]) + 1;
            return after < leftmost.size() ? leftmost[after] : n_;
        };
        Ints names(leftmost.size(), 0);
        int32_t name = 0;
        for (size_t k = 1; k < ordered.size(); ++k) {
            const int32_t a = ordered[k - 1], b = ordered[k], a_end = end(a), b_end = end(b);
            const bool same = a_end - a == b_end - b && a_end < n_ && b_end < n_ &&
                              std::equal(text_.begin() + a, text_.begin() + a_end + 1, text_.begin() + b);
            name += !same;
            names[at(number[at(b)])] = name;
        }
        Ints rows = suffix_array(names, name);
        for (int32_t& row : rows) row = leftmost[at(row)];
        return rows;
    }

    const Ints& text_;
    int32_t n_;
    std::vector<bool> small_;
    Ints order_, large_begin_, small_begin_;  // where each value's large and small suffixes begin
};

}  // namespace

std::vector<int32_t> suffix_array(const std::vector<int32_t>& text, int32_t largest) {
    if (text.size() < 2) return Ints(text.size(), 0);
    return InducedSort(text, largest).sorted();
}
