// Texts that do not change, as a suffix array: where the latest tokens occur, and what followed them there.
//
// A static index beside the online automaton, as in REST (He et al. 2024) and SAM-Decoding (Hu et al. 2024). Both
// arrays are borrowed, mapped from a file as a rule, so opening one reads nothing; what a damaged file says is
// checked where it is used.
#pragma once

#include <cstdint>
#include <vector>

class Corpus {
  public:
    static constexpr int32_t kSeparator = -1;
    static constexpr int32_t kTokens = 1 << 24;  // more than any vocabulary has: sorting takes memory for each
    static constexpr int kSamples = 16;        // occurrences looked at to learn what follows
    static constexpr int kContinuations = 2;   // different tokens that may follow
    static constexpr int32_t kLongest = 64;    // tokens of a match that are looked for anew

    // Rows first to last - 1 of the suffix array begin with the last `length` tokens.
    struct Match {
        int32_t first = 0, last = 0, length = 0;
    };
    struct Continuation {
        int32_t token;
        float share;  // of the occurrences that were looked at
    };

    // tokens (n,) of texts with kSeparator between them, suffixes (n,) their suffix array.
    Corpus(const int32_t* tokens, const int32_t* suffixes, int32_t n)
        : tokens_(tokens), suffixes_(suffixes), size_(n) {}

    int32_t size() const { return size_; }

    // The longest match that ends with `token` after the tokens of `at`.
    Match advance(const Match& at, int32_t token) const;

    // The most frequent tokens after a match, best first, ties to the lower id; returns how many. Of more than
    // kSamples occurrences as many are looked at, evenly spread over the sorted continuations.
    int continuations(const Match& at, Continuation* out) const;

  private:
    // Token `offset` places after the beginning of a row's suffix; a separator beyond the end.
    int32_t token_at(int32_t row, int32_t offset) const {
        const int32_t begin = suffixes_[row];
        if (begin < 0 || begin >= size_) return kSeparator;
        const int64_t place = static_cast<int64_t>(begin) + offset;
        return place < size_ ? tokens_[place] : kSeparator;
    }

    Match extend(const Match& at, int32_t token) const;
    Match find(const int32_t* pattern, int32_t length, int32_t token) const;

    const int32_t* tokens_;
    const int32_t* suffixes_;
    int32_t size_;
};

// Where the suffixes of `text` (n,) begin, in increasing order; values are from 0 to `largest`.
std::vector<int32_t> suffix_array(const std::vector<int32_t>& text, int32_t largest);
