// Online suffix automaton over texts of tokens: the most recent earlier occurrence of any suffix of a text.
//
// Blumer et al. 1985, of several texts that all may still grow (Blumer et al. 1987), with what drafting needs: every
// state knows where its strings occurred last, and how well that occurrence predicted. SAM-Decoding (Hu et al. 2024)
// drafts from the first occurrence, here it is the most recent one. What followed most often is known as well, as in
// SuffixDecoding (Oliaro et al. 2024).
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

class SuffixAutomaton {
  public:
    static constexpr int32_t kNoToken = -1;
    static constexpr int32_t kRoot = 0;
    static constexpr int kMatchHops = 32;    // links a query follows
    static constexpr int kRefreshHops = 64;  // links one append refreshes, and counts for
    static constexpr int kAdvanceHops = 64;  // links that a token is looked for behind, before the root
    static constexpr int8_t kNew = -1;       // streak of a state that has predicted nothing yet
    static constexpr int8_t kMaxStreak = 3;

    struct State {
        int32_t length;      // of the longest string of the state
        int32_t link;        // state of the longest suffix with more occurrences; -1 for the root
        int32_t recent;      // end of the most recent occurrence that a token followed, -1 if there is none
        int32_t other;       // the same of all texts but that of `recent`
        int32_t first_edge;  // list of outgoing transitions, -1 if empty
        int32_t common;      // the edge that was followed most often, the latest of several; -1 if there is none
        int32_t followed;    // how many occurrences a token followed
        int8_t streak;       // how often in a row what a text was told predicted right, or kNew
    };

    // apart: a text is told of occurrences in other texts only; else of its own as well.
    explicit SuffixAutomaton(bool apart = false) : apart_(apart) { clear(); }

    void clear();
    void reserve(int64_t more);  // memory for so many tokens more, at once
    // A new text; returns its number, which is never given again.
    int32_t begin();
    void append(int32_t text, int32_t token);
    // Nothing is appended to a text any more; its tokens stay.
    void end(int32_t text);
    // Forgets all but the latest `keep` tokens; texts go on as if they had begun with what is left of them.
    void forget(int64_t keep);

    struct Follower {
        int32_t token, count;  // -1 and 0 if there is none
    };
    // What followed a state most often, and how often.
    Follower common_token(const State& s) const {
        if (s.common < 0) return {kNoToken, 0};
        const Edge& edge = edges_[static_cast<size_t>(s.common)];
        return {edge.token, edge.count};
    }

    int64_t size() const { return static_cast<int64_t>(places_.size()); }
    int32_t token(int64_t place) const { return places_[static_cast<size_t>(place)].token; }
    int32_t text_of(int64_t place) const { return places_[static_cast<size_t>(place)].text; }
    const State& state(int32_t s) const { return states_[static_cast<size_t>(s)]; }

    // State whose longest string is the longest suffix of a text that occurred where the text is told of it; the
    // root if there is none within kRefreshHops links.
    int32_t matched(int32_t text) const;

    // Follows `token` from a string of `state` with `length` tokens, dropping tokens at its front until
    // that is possible; all of them after kAdvanceHops links, of which a text that repeats itself has as many as it has
    // repetitions. Updates `length`.
    int32_t advance(int32_t state, int32_t token, int32_t& length) const;

    // Where the strings of a state occurred last, of what a text is told; -1 if they did not.
    int32_t recent(const State& s, int32_t text) const {
        return apart_ && s.recent >= 0 && text_of(s.recent) == text ? s.other : s.recent;
    }

    // The token after that, kNoToken if there is none.
    int32_t next_token(const State& s, int32_t text) const {
        const int32_t end = recent(s, text);
        return end < 0 ? kNoToken : token(places_[static_cast<size_t>(end)].next);
    }

    // Most recent occurrences of suffixes of a text, longest first, with pairwise different next tokens.
    // Writes up to `count` ends and lengths, returns how many.
    int match(int32_t text, int count, int32_t* ends, int32_t* lengths) const;

  private:
    struct Edge {
        int32_t state, token, target, next;
        int32_t count;  // how often it was followed
    };
    struct Place {
        int32_t token, text;
        int32_t next;  // place of the token after it in its text, -1 if there is none yet
    };
    struct End {
        int32_t state, place;  // of the whole text, and of its last token; the root and -1 if it is empty
    };

    void refresh(const End& end, int32_t text, int32_t token);
    void count(int32_t from, int32_t token);
    int32_t extend(int32_t before, int32_t token);
    int32_t add_state(int32_t length, int32_t link);
    int32_t clone(int32_t parent, int32_t token, int32_t original);
    void add_edge(int32_t state, int32_t token, int32_t target, int32_t count = 0);
    int32_t find(int32_t state, int32_t token) const;  // index of an edge, -1 if there is none
    size_t slot(int32_t state, int32_t token) const;
    void rehash(size_t slots);

    bool apart_;
    std::vector<Place> places_;  // of the tokens of all texts, as they came
    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::vector<int32_t> table_;  // open addressing: edge index by (state, token), -1 is free
    std::unordered_map<int32_t, End> ends_;  // of the texts that may go on
    int32_t texts_ = 0;
};
