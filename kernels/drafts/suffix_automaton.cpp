#include "suffix_automaton.hpp"

#include <algorithm>
#include <stdexcept>

namespace {

constexpr size_t kFirstSlots = size_t{1} << 14;
constexpr int64_t kMaxText = int64_t{1} << 29;  // states and edges are indexed by int32

}  // namespace

void SuffixAutomaton::clear() {
    text_.clear();
    states_.clear();
    edges_.clear();
    table_.assign(kFirstSlots, -1);
    last_ = add_state(0, -1, -1, kNew);
}

int32_t SuffixAutomaton::add_state(int32_t length, int32_t link, int32_t recent, int8_t streak) {
    states_.push_back({length, link, recent, -1, -1, 0, streak});
    return static_cast<int32_t>(states_.size()) - 1;
}

void SuffixAutomaton::reserve(int64_t more) {
    const size_t tokens = text_.size() + static_cast<size_t>(more);
    text_.reserve(tokens);
    states_.reserve(tokens * 3 / 2 + 1);
    const size_t edges = tokens * 5 / 2;
    edges_.reserve(edges);
    size_t slots = table_.size();
    while (slots < edges * 2) slots *= 2;
    if (slots > table_.size()) rehash(slots);
}

size_t SuffixAutomaton::slot(int32_t state, int32_t token) const {
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 | static_cast<uint32_t>(token);
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    return static_cast<size_t>(hash * 0xD6E8FEB86659FD93u >> 32) & (table_.size() - 1);
}

int32_t SuffixAutomaton::find(int32_t state, int32_t token) const {
    const size_t mask = table_.size() - 1;
    for (size_t i = slot(state, token); table_[i] >= 0; i = (i + 1) & mask) {
        const Edge& edge = edges_[static_cast<size_t>(table_[i])];
        if (edge.state == state && edge.token == token) return table_[i];
    }
    return -1;
}

void SuffixAutomaton::rehash(size_t slots) {
    table_.assign(slots, -1);
    for (size_t e = 0; e < edges_.size(); ++e) {
        size_t i = slot(edges_[e].state, edges_[e].token);
        while (table_[i] >= 0) i = (i + 1) & (slots - 1);
        table_[i] = static_cast<int32_t>(e);
    }
}

void SuffixAutomaton::add_edge(int32_t state, int32_t token, int32_t target, int32_t count) {
    State& from = states_[static_cast<size_t>(state)];
    edges_.push_back({state, token, target, from.first_edge, count});
    from.first_edge = static_cast<int32_t>(edges_.size()) - 1;
    if (edges_.size() * 2 > table_.size()) return rehash(table_.size() * 2);
    size_t i = slot(state, token);
    while (table_[i] >= 0) i = (i + 1) & (table_.size() - 1);
    table_[i] = from.first_edge;
}

// Splits off the strings of `original` that are at most one token longer than `parent`'s, because they are
// about to occur in a place where the longer ones do not. Returns their new state.
int32_t SuffixAutomaton::clone(int32_t parent, int32_t token, int32_t original) {
    const State old = state(original);
    const int32_t copy = add_state(state(parent).length + 1, old.link, old.recent, old.streak);
    for (int32_t e = old.first_edge; e >= 0; e = edges_[static_cast<size_t>(e)].next) {
        const Edge edge = edges_[static_cast<size_t>(e)];
        add_edge(copy, edge.token, edge.target, edge.count);
        if (e == old.common) states_[static_cast<size_t>(copy)].common = static_cast<int32_t>(edges_.size()) - 1;
    }
    states_[static_cast<size_t>(copy)].followed = old.followed;
    for (int32_t p = parent; p >= 0; p = state(p).link) {
        const int32_t e = find(p, token);
        if (e < 0 || edges_[static_cast<size_t>(e)].target != original) break;
        edges_[static_cast<size_t>(e)].target = copy;
    }
    states_[static_cast<size_t>(original)].link = copy;
    return copy;
}

// Every suffix of the text occurs at its end; that becomes the most recent occurrence once `token` follows.
void SuffixAutomaton::refresh(int32_t token) {
    const int32_t end = static_cast<int32_t>(text_.size()) - 1;
    int32_t s = last_;
    for (int hop = 0; s != kRoot && hop < kRefreshHops; ++hop) {
        State& suffix = states_[static_cast<size_t>(s)];
        if (token == kSeparator) {  // predicts nothing: an older occurrence is worth more
            if (suffix.recent < 0) suffix.recent = end;
        } else {
            const int32_t predicted = next_token(suffix);
            if (predicted != kSeparator) {
                const int right = std::min<int>(std::max<int>(suffix.streak, 0) + 1, kMaxStreak);
                suffix.streak = static_cast<int8_t>(predicted == token ? right : 0);
            }
            suffix.recent = end;
        }
        s = suffix.link;
    }
}

// `token` followed every suffix of the text that ended in state `from`.
void SuffixAutomaton::count(int32_t from, int32_t token) {
    int32_t s = from;
    for (int hop = 0; s != kRoot && hop < kRefreshHops; ++hop) {
        State& suffix = states_[static_cast<size_t>(s)];
        const int32_t e = find(s, token), now = ++edges_[static_cast<size_t>(e)].count;
        ++suffix.followed;
        if (suffix.common < 0 || now >= edges_[static_cast<size_t>(suffix.common)].count) suffix.common = e;
        s = suffix.link;
    }
}

void SuffixAutomaton::append(int32_t token) {
    if (token < 0) throw std::invalid_argument("a token of the text is negative");
    if (size() >= kMaxText) throw std::length_error("the text of the suffix automaton is full");
    refresh(token);
    text_.push_back(token);
    const int32_t before = last_;
    extend(before, token);
    count(before, token);
}

void SuffixAutomaton::extend(int32_t before, int32_t token) {
    const int32_t length = state(before).length + 1;
    const int32_t known = find(before, token);
    if (known >= 0) {  // only after a separator: this text began like an older one
        const int32_t q = edges_[static_cast<size_t>(known)].target;
        last_ = state(q).length == length ? q : clone(before, token, q);
        return;
    }
    last_ = add_state(length, kRoot, -1, kNew);
    for (int32_t p = before; p >= 0; p = state(p).link) {
        const int32_t e = find(p, token);
        if (e < 0) {
            add_edge(p, token, last_);
            continue;
        }
        const int32_t q = edges_[static_cast<size_t>(e)].target;
        const int32_t link = state(q).length == state(p).length + 1 ? q : clone(p, token, q);
        states_[static_cast<size_t>(last_)].link = link;
        return;
    }
}

void SuffixAutomaton::separate() {
    refresh(kSeparator);
    text_.push_back(kSeparator);
    last_ = kRoot;
}

int32_t SuffixAutomaton::advance(int32_t s, int32_t token, int32_t& length) const {
    for (; s >= 0; s = state(s).link) {
        length = std::min(length, state(s).length);
        const int32_t e = find(s, token);
        if (e >= 0) {
            ++length;
            return edges_[static_cast<size_t>(e)].target;
        }
    }
    length = 0;
    return kRoot;
}

int SuffixAutomaton::match(int count, int32_t* ends, int32_t* lengths) const {
    int found = 0;
    int32_t s = matched();
    for (int hop = 0; s > kRoot && hop < kMatchHops && found < count; ++hop, s = state(s).link) {
        const int32_t token = next_token(state(s));
        bool fresh = token != kSeparator;
        for (int i = 0; i < found && fresh; ++i) fresh = text_[static_cast<size_t>(ends[i]) + 1] != token;
        if (!fresh) continue;
        ends[found] = state(s).recent;
        lengths[found++] = state(s).length;
    }
    return found;
}
