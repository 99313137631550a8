#include "suffix_automaton.hpp"

#include <algorithm>
#include <stdexcept>

namespace {

constexpr size_t kFirstSlots = size_t{1} << 14;
constexpr int64_t kMaxText = int64_t{1} << 29;  // states and edges are indexed by int32

}  // namespace

void SuffixAutomaton::clear() {
    places_.clear();
    states_.clear();
    edges_.clear();
    table_.assign(kFirstSlots, -1);
    ends_.clear();
    add_state(0, -1);
}

int32_t SuffixAutomaton::begin() {
    if (texts_ == INT32_MAX) throw std::length_error("the suffix automaton has had too many texts");
    ends_[texts_] = {kRoot, -1};
    return texts_++;
}

void SuffixAutomaton::end(int32_t text) { ends_.erase(text); }

void SuffixAutomaton::forget(int64_t keep) {
    const std::vector<Place> before = std::move(places_);
    std::vector<int32_t> open;
    for (const auto& each : ends_) open.push_back(each.first);
    clear();
    const int64_t n = static_cast<int64_t>(before.size());
    const int64_t kept = std::min(std::max<int64_t>(keep, 0), n);
    reserve(kept);
    for (const int32_t text : open) ends_[text] = {kRoot, -1};
    std::vector<int32_t> finished;
    for (int64_t i = n - kept; i < n; ++i) {
        const Place& place = before[static_cast<size_t>(i)];
        if (ends_.emplace(place.text, End{kRoot, -1}).second) finished.push_back(place.text);
        append(place.text, place.token);
    }
    for (const int32_t text : finished) ends_.erase(text);
}

int32_t SuffixAutomaton::add_state(int32_t length, int32_t link) {
    states_.push_back({length, link, -1, -1, -1, -1, 0, kNew});
    return static_cast<int32_t>(states_.size()) - 1;
}

void SuffixAutomaton::reserve(int64_t more) {
    const size_t tokens = places_.size() + static_cast<size_t>(more);
    places_.reserve(tokens);
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
    const int32_t copy = add_state(state(parent).length + 1, old.link);
    State& shorter = states_[static_cast<size_t>(copy)];
    shorter.recent = old.recent;
    shorter.other = old.other;
    shorter.followed = old.followed;
    shorter.streak = old.streak;
    for (int32_t e = old.first_edge; e >= 0; e = edges_[static_cast<size_t>(e)].next) {
        const Edge edge = edges_[static_cast<size_t>(e)];
        add_edge(copy, edge.token, edge.target, edge.count);
        if (e == old.common) states_[static_cast<size_t>(copy)].common = static_cast<int32_t>(edges_.size()) - 1;
    }
    for (int32_t p = parent; p >= 0; p = state(p).link) {
        const int32_t e = find(p, token);
        if (e < 0 || edges_[static_cast<size_t>(e)].target != original) break;
        edges_[static_cast<size_t>(e)].target = copy;
    }
    states_[static_cast<size_t>(original)].link = copy;
    return copy;
}

// Every suffix of a text occurs at its end; that becomes the most recent occurrence once `token` follows.
void SuffixAutomaton::refresh(const End& end, int32_t text, int32_t token) {
    int32_t s = end.state;
    for (int hop = 0; s != kRoot && hop < kRefreshHops; ++hop) {
        State& suffix = states_[static_cast<size_t>(s)];
        const int32_t predicted = next_token(suffix, text);
        if (predicted != kNoToken) {
            const int right = std::min<int>(std::max<int>(suffix.streak, 0) + 1, kMaxStreak);
            suffix.streak = static_cast<int8_t>(predicted == token ? right : 0);
        }
        if (suffix.recent >= 0 && text_of(suffix.recent) != text) suffix.other = suffix.recent;
        suffix.recent = end.place;
        s = suffix.link;
    }
}

// `token` followed every suffix of a text that ended in state `from`.
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

void SuffixAutomaton::append(int32_t text, int32_t token) {
    if (token < 0) throw std::invalid_argument("a token of the text is negative");
    if (size() >= kMaxText) throw std::length_error("the text of the suffix automaton is full");
    const auto found = ends_.find(text);
    if (found == ends_.end()) throw std::invalid_argument("there is no such text, or it has ended");
    const End before = found->second;
    refresh(before, text, token);
    const int32_t place = static_cast<int32_t>(size());
    places_.push_back({token, text, -1});
    if (before.place >= 0) places_[static_cast<size_t>(before.place)].next = place;
    found->second = {extend(before.state, token), place};
    count(before.state, token);
}

// The state of a text that was in state `before` and goes on with `token`.
int32_t SuffixAutomaton::extend(int32_t before, int32_t token) {
    const int32_t length = state(before).length + 1;
    const int32_t known = find(before, token);
    if (known >= 0) {  // the whole text occurs in another one
        const int32_t q = edges_[static_cast<size_t>(known)].target;
        return state(q).length == length ? q : clone(before, token, q);
    }
    const int32_t whole = add_state(length, kRoot);
    for (int32_t p = before; p >= 0; p = state(p).link) {
        const int32_t e = find(p, token);
        if (e < 0) {
            add_edge(p, token, whole);
            continue;
        }
        const int32_t q = edges_[static_cast<size_t>(e)].target;
        const int32_t link = state(q).length == state(p).length + 1 ? q : clone(p, token, q);
        states_[static_cast<size_t>(whole)].link = link;
        break;
    }
    return whole;
}

int32_t SuffixAutomaton::matched(int32_t text) const {
    const auto found = ends_.find(text);
    int32_t s = found == ends_.end() ? kRoot : found->second.state;
    for (int hop = 0; s != kRoot && hop < kRefreshHops; ++hop) {
        if (recent(state(s), text) >= 0) return s;
        s = state(s).link;
    }
    return kRoot;
}

int32_t SuffixAutomaton::advance(int32_t s, int32_t token, int32_t& length) const {
    for (int hop = 0; s >= 0; s = state(s).link, ++hop) {
        if (hop == kAdvanceHops) s = kRoot;
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

int SuffixAutomaton::match(int32_t text, int count, int32_t* ends, int32_t* lengths) const {
    int found = 0;
    int32_t s = matched(text);
    for (int hop = 0; s > kRoot && hop < kMatchHops && found < count; ++hop, s = state(s).link) {
        const int32_t token = next_token(state(s), text);
        const bool known = std::any_of(ends, ends + found, [&](int32_t end) {
            return this->token(places_[static_cast<size_t>(end)].next) == token;
        });
        if (token == kNoToken || known) continue;
        ends[found] = recent(state(s), text);
        lengths[found++] = state(s).length;
    }
    return found;
}
