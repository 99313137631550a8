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
                   SuffixAutomaton* written, const Corpus* corpus)
    : in_own_(own_.begin()),
      table_(table),
      calibration_(calibration),
      use_suffix_(use_suffix),
      use_recycle_(use_recycle),
      written_(use_suffix ? written : nullptr),
      corpus_(use_suffix ? corpus : nullptr) {
    if (table.k() != kRowWidth) throw std::invalid_argument("the rows of the table have another width");
}

void FreeTrie::append(int32_t token) {
    if (token < 0 || token >= table_.vocab_size()) throw std::out_of_range("a token is outside the vocabulary");
    text_.push_back(token);
    if (use_suffix_) {
        own_.append(in_own_, token);
        if (own_.size() > 2 * kSearched) own_.forget(kSearched);
    }
    if (in_written_ >= 0) {
        written_->append(in_written_, token);
        if (written_->size() > 2 * kSearched) written_->forget(kSearched);
    }
}

void FreeTrie::begin(const int32_t* context, int64_t n, int64_t shared) {
    const int64_t held = static_cast<int64_t>(text_.size());
    int64_t i = held <= n && std::equal(text_.begin(), text_.end(), context) ? held : 0;
    if (i == 0) {
        text_.clear();
        own_.clear();
        in_own_ = own_.begin();
        followed_ = 0;
        in_corpus_ = {};
        if (in_written_ >= 0) written_->end(in_written_);
        in_written_ = -1;
    }
    if (use_suffix_) own_.reserve(n - i);
    for (; i < n; ++i) {
        if (written_ && in_written_ < 0 && i >= n - shared) in_written_ = written_->begin();
        append(context[i]);
    }
    if (written_ && in_written_ < 0) in_written_ = written_->begin();
}

void FreeTrie::update_tree(int32_t previous, int32_t token, const Node* draft, LogitRows& logits,
                           int64_t nodes) {
    // Backwards: where two nodes have the same context, the more probable path has the last word.
    for (int64_t i = nodes - 1; i >= 0; --i) {
        const int32_t before = draft[i].parent < 0 ? token : draft[draft[i].parent].token;
        table_.update(before, draft[i].token, logits[static_cast<size_t>(i + 1)]);
    }
    table_.update(previous, token, logits[0]);
}

// A text is followed token by token; of one that has become much longer, the last tokens are looked up.
void FreeTrie::follow_corpus() {
    const int64_t n = static_cast<int64_t>(text_.size());
    if (n - followed_ > Corpus::kLongest) {
        followed_ = n - Corpus::kLongest;
        in_corpus_ = {};
    }
    for (; followed_ < n; ++followed_)
        in_corpus_ = corpus_->advance(in_corpus_, text_[static_cast<size_t>(followed_)]);
}

FreeTrie::Context FreeTrie::end_of_text() {
    if (corpus_) follow_corpus();
    const size_t n = text_.size();
    Context at{{}, {}, n > 1 ? text_[n - 2] : -1, n > 0 ? text_[n - 1] : -1, in_corpus_};
    const auto match = [](const SuffixAutomaton& in, int32_t text) {
        const int32_t state = in.matched(text);
        return Match{state, in.state(state).length};
    };
    if (use_suffix_) at.own = match(own_, in_own_);
    if (in_written_ >= 0) at.written = match(*written_, in_written_);
    return at;
}

FreeTrie::Context FreeTrie::child(const Context& parent, int32_t token) const {
    Context at{parent.own, parent.written, parent.token, token, {}};
    if (use_suffix_) at.own.state = own_.advance(at.own.state, token, at.own.length);
    if (in_written_ >= 0) at.written.state = written_->advance(at.written.state, token, at.written.length);
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

// Longest match first, of two alike the one in the text itself.
int FreeTrie::suffix_candidates(const Context& at, const Row& row, Order order, Candidate* out) const {
    Links links[2] = {{&own_, in_own_, at.own, false}, {nullptr, in_written_, at.written, true}};
    if (in_written_ >= 0) links[1].in = written_;
    bool corpus_due = at.corpus.length > 0;
    int n = 0;
    while (n < kMaxSuffixes) {
        Links* longest = nullptr;
        for (Links& each : links)
            if (!each.ended() && (!longest || each.at.length > longest->at.length)) longest = &each;
        if (corpus_due && (!longest || longest->at.length < at.corpus.length)) {
            n = corpus_candidates(at, row, order, n, out);
            corpus_due = false;
        } else if (longest) {
            n = link_candidates(*longest, row, order, n, out);
            longest->next();
        } else {
            break;
        }
    }
    return n;
}

// What followed a string last, then what followed it most often.
int FreeTrie::link_candidates(const Links& links, const Row& row, Order order, int n, Candidate* out) const {
    const SuffixAutomaton::State& state = links.in->state(links.at.state);
    const int32_t latest = links.in->next_token(state, links.text);
    if (latest == SuffixAutomaton::kNoToken) return n;
    const auto add = [&](int32_t token, int evidence) {
        if (n == kMaxSuffixes || taken(out, n, token)) return;
        const int agrees = agreement(token, row.ids, row.scores, row.n, row.order);
        out[n] = {token, Calibration::suffix_cell(order, n, links.at.length, agrees, evidence),
                  links.history ? kHistory : kSuffix, links.at.length};
        ++n;
    };
    add(latest, Calibration::recent_evidence(state.streak, links.history));
    const SuffixAutomaton::Follower common = links.in->common_token(state);
    add(common.token, Calibration::common_evidence(common.count, state.followed, links.history));
    return n;
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
    limit = std::min(limit, kMaxNodes);
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
