#include "free_trie.hpp"

#include <algorithm>
#include <stdexcept>

#include "noise.hpp"

namespace {

int agreement(int32_t token, const int32_t* ids, const double* scores, int n, int order) {
    int rank = order == 0 ? -2 : -1;
    for (int i = 0; i < n; ++i)
        if (ids[i] == token) rank = i;
    return Calibration::agreement_bucket(rank, n > 1 ? scores[0] - scores[1] : 0);
}

}  // namespace

FreeTrie::FreeTrie(RecycleTable& table, Calibration calibration, bool use_suffix, bool use_recycle,
                   const Corpus* corpus)
    : table_(table),
      calibration_(calibration),
      use_suffix_(use_suffix),
      use_recycle_(use_recycle),
      corpus_(use_suffix ? corpus : nullptr) {
    if (table.k() != kRowWidth) throw std::invalid_argument("the rows of the table have another width");
}

void FreeTrie::append(int32_t token) {
    if (token >= table_.vocab_size()) throw std::out_of_range("a token is outside the vocabulary");
    automaton_.append(token);
}

void FreeTrie::clear_text() {
    automaton_.clear();
    start_ = followed_ = 0;
    in_corpus_ = {};
}

void FreeTrie::begin(const int32_t* context, int64_t n) {
    const std::vector<int32_t>& text = automaton_.text();
    const int64_t held = automaton_.size() - start_;
    int64_t i = held <= n && std::equal(text.begin() + start_, text.end(), context) ? held : 0;
    if (i == 0) {
        if (held > 0) automaton_.separate();
        start_ = automaton_.size();
    }
    for (; i < n; ++i) append(context[i]);
}

void FreeTrie::preload(const int32_t* tokens, int64_t n) {
    automaton_.reserve(n);
    if (automaton_.size() > start_) automaton_.separate();
    for (int64_t i = 0; i < n; ++i) {
        if (tokens[i] == SuffixAutomaton::kSeparator)
            automaton_.separate();
        else
            append(tokens[i]);
    }
    if (n > 0 && tokens[n - 1] != SuffixAutomaton::kSeparator) automaton_.separate();
    start_ = automaton_.size();
}

void FreeTrie::update_tree(int32_t previous, int32_t token, const int32_t* tokens, const int32_t* parents,
                           LogitRows& logits, int64_t nodes) {
    // Backwards: where two nodes have the same context, the more probable path has the last word.
    for (int64_t i = nodes - 1; i >= 0; --i) {
        if (parents[i] < -1 || parents[i] >= i) throw std::invalid_argument("a parent comes after its child");
        const int32_t before = parents[i] < 0 ? token : tokens[parents[i]];
        table_.update(before, tokens[i], logits[static_cast<size_t>(i + 1)]);
    }
    table_.update(previous, token, logits[0]);
}

// A text is followed token by token; of one that has become much longer, the last tokens are looked up.
void FreeTrie::follow_corpus() {
    const std::vector<int32_t>& text = automaton_.text();
    const int64_t n = automaton_.size();
    if (n - followed_ > Corpus::kLongest) {
        followed_ = n - Corpus::kLongest;
        in_corpus_ = {};
    }
    for (; followed_ < n; ++followed_)
        in_corpus_ = corpus_->advance(in_corpus_, text[static_cast<size_t>(followed_)]);
}

FreeTrie::Context FreeTrie::end_of_text() {
    if (corpus_) follow_corpus();
    const std::vector<int32_t>& text = automaton_.text();
    const size_t n = text.size();
    const int32_t state = automaton_.matched();
    const int32_t token = n > 0 ? text[n - 1] : -1;
    return {state, automaton_.state(state).length, n > 1 && token >= 0 ? text[n - 2] : -1, token,
            in_corpus_};
}

FreeTrie::Context FreeTrie::child(const Context& parent, int32_t token) const {
    Context at{parent.state, parent.length, parent.token, token, {}};
    if (use_suffix_) at.state = automaton_.advance(parent.state, token, at.length);
    if (corpus_) at.corpus = corpus_->advance(parent.corpus, token);
    return at;
}

FreeTrie::Row FreeTrie::ranked_row(const Context& at, const Sampling& sampling, int64_t position) const {
    Row row;
    if (!use_recycle_) return row;
    const RecycleTable::Row found = table_.lookup(at.previous, at.token);
    row.order = found.order;
    if (found.order == 0) return row;
    const double scale = sampling.temperature > 0 ? 1.0 / sampling.temperature : 1.0;
    const bool noisy = sampling.order() == Order::kCoupled;
    for (int i = 0; i < table_.k() && found.ids[i] >= 0; ++i) {
        double score = static_cast<double>(found.logits[i]) * scale;
        if (noisy) score += gumbel_noise(sampling.seed, static_cast<uint64_t>(position), found.ids[i]);
        int j = row.n++;
        for (; noisy && j > 0 && row.scores[j - 1] < score; --j) {
            row.ids[j] = row.ids[j - 1];
            row.scores[j] = row.scores[j - 1];
        }
        row.ids[j] = found.ids[i];
        row.scores[j] = score;
    }
    return row;
}

bool FreeTrie::taken(const Candidate* found, int n, int32_t token) {
    return std::any_of(found, found + n, [&](const Candidate& other) { return other.token == token; });
}

// Longest match first: what followed a string last, then what followed it most often.
int FreeTrie::suffix_candidates(const Context& at, const Row& row, Order order, Candidate* out) const {
    int n = 0;
    bool corpus_due = at.corpus.length > 0;
    const auto add = [&](int32_t token, int32_t length, int evidence, bool history) {
        if (n == kMaxSuffixes || token == SuffixAutomaton::kSeparator || taken(out, n, token)) return;
        const int agrees = agreement(token, row.ids, row.scores, row.n, row.order);
        out[n] = {token, Calibration::suffix_cell(order, n, length, agrees, evidence),
                  history ? kHistory : kSuffix, length};
        ++n;
    };
    int32_t s = at.state;
    for (int hop = 0; s > SuffixAutomaton::kRoot && hop < kSuffixHops && n < kMaxSuffixes; ++hop) {
        const SuffixAutomaton::State& state = automaton_.state(s);
        const int32_t length = hop == 0 ? at.length : state.length;
        if (corpus_due && length < at.corpus.length) {
            n = corpus_candidates(at, row, order, n, out);
            corpus_due = false;
        }
        const bool history = state.recent < start_;
        add(automaton_.next_token(state), length, Calibration::recent_evidence(state.streak, history), history);
        const SuffixAutomaton::Follower common = automaton_.common_token(state);
        add(common.token, length, Calibration::common_evidence(common.count, state.followed, history), history);
        s = state.link;
    }
    return corpus_due ? corpus_candidates(at, row, order, n, out) : n;
}

int FreeTrie::corpus_candidates(const Context& at, const Row& row, Order order, int n, Candidate* out) const {
    Corpus::Continuation found[Corpus::kContinuations];
    const int count = corpus_->continuations(at.corpus, found);
    const int32_t length = at.corpus.length, occurrences = at.corpus.last - at.corpus.first;
    for (int i = 0; i < count && n < kMaxSuffixes; ++i) {
        const int32_t token = found[i].token;
        if (token >= table_.vocab_size() || taken(out, n, token)) continue;
        const int agrees = agreement(token, row.ids, row.scores, row.n, row.order);
        const int evidence = Calibration::corpus_evidence(found[i].share, occurrences);
        out[n] = {token, Calibration::suffix_cell(order, n, length, agrees, evidence), kCorpus, length};
        ++n;
    }
    return n;
}

int FreeTrie::recycled_candidates(const Row& row, Order order, int suffixes, Candidate* out) const {
    // out[-suffixes .. -1] are the suffix candidates.
    const int32_t match = suffixes > 0 ? out[-suffixes].match : 0;
    int untaken[kRowWidth], n = 0;
    for (int i = 0; i < row.n; ++i) {
        if (!taken(out - suffixes, suffixes, row.ids[i])) untaken[n++] = i;
    }
    for (int i = 0; i < n; ++i) {
        const double margin = i + 1 < n ? row.scores[untaken[i]] - row.scores[untaken[i + 1]] : 0;
        const int cell = Calibration::recycle_cell(order, i, static_cast<float>(margin), row.order, match);
        out[i] = {row.ids[untaken[i]], cell, kRecycle, 0};
    }
    return n;
}

int FreeTrie::candidates(const Context& at, const Sampling& sampling, int64_t position, Candidate* out) const {
    const Row row = ranked_row(at, sampling, position);
    const int n = use_suffix_ ? suffix_candidates(at, row, sampling.order(), out) : 0;
    return n + recycled_candidates(row, sampling.order(), n, out + n);
}

void FreeTrie::score(int32_t token, const Context& at, const Sampling& sampling, int64_t position) {
    Candidate found[kMaxSuffixes + kRowWidth];
    const int n = candidates(at, sampling, position, found);
    for (int i = 0; i < n; ++i) {
        const bool hit = found[i].token == token;
        calibration_.score(found[i].cell, hit);
        if (hit) return;
    }
}

void FreeTrie::compare_orders(int32_t token, const Context& at, const Sampling& sampling, int64_t position) {
    const auto reciprocal = [&](bool coupled) {
        const Row row = ranked_row(at, {sampling.seed, sampling.temperature, coupled}, position);
        for (int i = 0; i < row.n; ++i)
            if (row.ids[i] == token) return 1.0 / (1 + i);
        return 0.0;
    };
    plain_score_ += (1 - kOrderKeep) * (reciprocal(false) - plain_score_);
    coupled_score_ += (1 - kOrderKeep) * (reciprocal(true) - coupled_score_);
}

void FreeTrie::observe(int32_t token, const Sampling& sampling, int64_t position) {
    const Context at = end_of_text();
    if (sampling.order() == Order::kGreedy) {
        score(token, at, sampling, position);
    } else {  // what the other order would have proposed is known too
        compare_orders(token, at, sampling, position);
        for (const bool coupled : {false, true})
            score(token, at, {sampling.seed, sampling.temperature, coupled}, position);
    }
    append(token);
}

bool FreeTrie::later(const Open& a, const Open& b) {
    return a.prob != b.prob ? a.prob < b.prob : a.number > b.number;
}

void FreeTrie::expand(const Place& at, int32_t parent, const Sampling& sampling, int64_t position) {
    Candidate found[kMaxSuffixes + kRowWidth];
    const int n = candidates(at.context, sampling, position + at.depth, found);
    double rest = at.prob;  // probability that the path is right and the candidates so far are wrong
    for (int i = 0; i < n && rest >= kMinProbability; ++i) {
        const double prob = rest * calibration_.hazard(found[i].cell);
        rest -= prob;
        if (prob < kMinProbability) continue;
        heap_.push_back({prob, pushes_++, parent, found[i].token, found[i].source});
        std::push_heap(heap_.begin(), heap_.end(), later);
    }
}

const std::vector<FreeTrie::Node>& FreeTrie::grow(int limit, int leaves, const Sampling& sampling,
                                                  int64_t position, const std::vector<int32_t>& path) {
    Context root = end_of_text();
    for (const int32_t token : path) {
        if (token < 0 || token >= table_.vocab_size())
            throw std::out_of_range("a token is outside the vocabulary");
        root = child(root, token);
    }
    position += static_cast<int64_t>(path.size());
    nodes_.clear();
    heap_.clear();
    pushes_ = 0;
    places_.assign(1, {root, 1.0, 0, 0});  // of the root, then of every node
    int ends = 0;                          // leaves so far
    if (limit > 0) expand(places_[0], -1, sampling, position);
    while (!heap_.empty() && static_cast<int>(nodes_.size()) < limit) {
        std::pop_heap(heap_.begin(), heap_.end(), later);
        const Open best = heap_.back();
        heap_.pop_back();
        Place& parent = places_[static_cast<size_t>(best.parent) + 1];
        const bool new_leaf = parent.children > 0 || best.parent < 0;  // else the parent stops being one
        if (new_leaf && ends >= leaves) continue;
        ends += new_leaf;
        ++parent.children;
        nodes_.push_back({best.token, best.parent, static_cast<float>(best.prob), best.source});
        const Place place{child(parent.context, best.token), best.prob, parent.depth + 1, 0};
        places_.push_back(place);
        if (static_cast<int>(nodes_.size()) < limit)
            expand(place, static_cast<int32_t>(nodes_.size()) - 1, sampling, position);
    }
    return nodes_;
}
