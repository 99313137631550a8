// Online suffix automaton over a text of tokens: the most recent earlier occurrence of any suffix.
//
// Blumer et al. 1985, extended to several texts in one (separators), with what drafting needs: every state
// knows where its strings occurred last before the current end, and how well that occurrence predicted.
// SAM-Decoding (Hu et al. 2024) drafts from the first occurrence, here it is the most recent one. What followed most
// often is known as well, as in SuffixDecoding (Oliaro et al. 2024).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

class SuffixAutomaton {
  public:
    static constexpr int32_t kSeparator = -1;
    static constexpr int32_t kRoot = 0;
    static constexpr int kMatchHops = 32;    // links a query follows
    static constexpr int kRefreshHops = 64;  // links one append refreshes, and counts for
    static constexpr int8_t kNew = -1;       // streak of a state that has predicted nothing yet
    static constexpr int8_t kMaxStreak = 3;

    struct State {
        int32_t length;      // of the longest string of the state
        int32_t link;        // state of the longest suffix with more occurrences; -1 for the root
        int32_t recent;      // end of the most recent occurrence before the current end, -1 if there is none
        int32_t first_edge;  // list of outgoing transitions, -1 if empty
        int32_t common;      // the edge that was followed most often, the latest of several; -1 if there is none
        int32_t followed;    // how many occurrences a token followed
        int8_t streak;       // how often in a row the most recent occurrence predicted right, or kNew
    };

    SuffixAutomaton() { clear(); }

    void clear();
    void reserve(int64_t more);  // memory for so many tokens more, at once
    void append(int32_t token);

    // A break that no match spans. Takes one position of the text.
    void separate();

    struct Follower {
        int32_t token, count;  // -1 and 0 if there is none
    };
    // What followed a state most often, and how often.
    Follower common_token(const State& s) const {
        if (s.common < 0) return {kSeparator, 0};
        const Edge& edge = edges_[static_cast<size_t>(s.common)];
        return {edge.token, edge.count};
    }

    int64_t size() const { return static_cast<int64_t>(text_.size()); }
    const std::vector<int32_t>& text() const { return text_; }
    const State& state(int32_t s) const { return states_[static_cast<size_t>(s)]; }

    // State whose longest string is the longest suffix of the text that occurred before (else the root).
    int32_t matched() const {
        const State& s = state(last_);
        return s.recent < 0 && last_ != kRoot ? s.link : last_;
    }

    // Follows `token` from a string of `state` with `length` tokens, dropping tokens at its front until
    // that is possible. Updates `length`.
    int32_t advance(int32_t state, int32_t token, int32_t& length) const;

    // The token after the most recent occurrence, kSeparator if there is none.
    int32_t next_token(const State& s) const {
        return s.recent < 0 ? kSeparator : text_[static_cast<size_t>(s.recent) + 1];
    }

    // Most recent occurrences of suffixes of the text, longest first, with pairwise different next tokens.
    // Writes up to `count` ends and lengths, returns how many.
    int match(int count, int32_t* ends, int32_t* lengths) const;

  private:
    struct Edge {
        int32_t state, token, target, next;
        int32_t count;  // how often it was followed
    };

    void refresh(int32_t token);
    void count(int32_t from, int32_t token);
    void extend(int32_t before, int32_t token);
    int32_t add_state(int32_t length, int32_t link, int32_t recent, int8_t streak);
    int32_t clone(int32_t parent, int32_t token, int32_t original);
    void add_edge(int32_t state, int32_t token, int32_t target, int32_t count = 0);
    int32_t find(int32_t state, int32_t token) const;  // index of an edge, -1 if there is none
    size_t slot(int32_t state, int32_t token) const;
    void rehash(size_t slots);

    std::vector<int32_t> text_;
    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::vector<int32_t> table_;  // open addressing: edge index by (state, token), -1 is free
    int32_t last_ = kRoot;        // state of the text since the last separator
};
