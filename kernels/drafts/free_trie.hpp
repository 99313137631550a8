// The drafters that read no weights, as one tree: a spine of suffix matches with recycled branches.
//
// Every candidate gets a calibrated probability, and the tree grows best first, so that its first n nodes
// are the n most promising ones (DySpec, OPT-Tree; spine and branches: Goose 2026).
#pragma once

#include <cstdint>
#include <vector>

#include "calibration.hpp"
#include "corpus.hpp"
#include "recycle_table.hpp"
#include "suffix_automaton.hpp"

// How the target chooses its tokens; decides the order of recycled candidates.
struct Sampling {
    uint64_t seed;
    double temperature;
    bool coupled;  // rank by logit / temperature + the noise of the position, which is what the target does

    Order order() const {
        return temperature <= 0 ? Order::kGreedy : coupled ? Order::kCoupled : Order::kPlain;
    }
};

class FreeTrie {
  public:
    static constexpr int kRowWidth = 8;             // candidates of one recycled row
    static constexpr int64_t kSearched = 1 << 18;   // latest tokens that are searched, at least; of twice as many
                                                    // the older half goes
    static constexpr int kMaxSuffixes = 3;          // suffix candidates of one node
    static constexpr int kSuffixHops = 16;          // links followed to find them
    static constexpr int kMaxNodes = 4096;          // of a tree, whatever is asked for: no step checks as many
    static constexpr double kMinProbability = 0.002;  // of a path; less is not worth a node at any width
    static constexpr double kOrderKeep = 0.98;      // forgetting of the comparison of orders
    static constexpr uint8_t kSuffix = 0, kRecycle = 1, kHistory = 2, kCorpus = 3;

    struct Node {
        int32_t token, parent;
        float prob;
        uint8_t source;
    };

    // The table and the counts are those of a model: tries of several texts read and write the same ones. So is
    // `written`, which tells texts apart: what is written in one is searched by the others at once. It and the corpus
    // may be missing; they are searched as the text itself is, where suffixes are used.
    FreeTrie(RecycleTable& table, Calibration calibration, bool use_suffix, bool use_recycle,
             SuffixAutomaton* written = nullptr, const Corpus* corpus = nullptr);

    RecycleTable& table() { return table_; }

    // The text is now `context`, of which others search the last `shared` tokens and what is appended from then on. A
    // text that goes on from the one before stays the same one.
    void begin(const int32_t* context, int64_t n, int64_t shared);
    void append(int32_t token);
    // Scores the candidates of the present context against `token`, the token at `position`, and appends it.
    void observe(int32_t token, const Sampling& sampling, int64_t position);
    // logits: of the root, then of each of the `nodes` of a draft.
    void update_tree(int32_t previous, int32_t token, const Node* draft, LogitRows& logits, int64_t nodes);
    // The best tree below the text and the tokens `path` after it, valid until the next call. `position` is that
    // of the first token after the text.
    const std::vector<Node>& grow(int limit, int leaves, const Sampling& sampling, int64_t position,
                                  const std::vector<int32_t>& path = {});

    // Decayed mean of 1 / (1 + rank of the right token in the recycled row) under either order.
    double plain_score() const { return plain_score_; }
    double coupled_score() const { return coupled_score_; }

  private:
    struct Candidate {
        int32_t token;
        int cell;
        uint8_t source;
        int32_t match;  // length, 0 if recycled
    };
    struct Match {  // of a suffix, in an automaton
        int32_t state = SuffixAutomaton::kRoot, length = 0;
    };
    // A place in the tree, or the end of the text.
    struct Context {
        Match own, written;
        int32_t previous, token;  // the last two tokens, -1 if there are none
        Corpus::Match corpus;
    };
    // What suffixes of a context tell, one after the other, longest first.
    struct Links {
        const SuffixAutomaton* in;  // none if there is nothing to be told
        int32_t text;
        Match at;
        bool history;
        int hops = 0;

        bool ended() const { return !in || at.state <= SuffixAutomaton::kRoot || hops == kSuffixHops; }
        void next() {
            at.state = in->state(at.state).link;
            at.length = in->state(at.state).length;
            ++hops;
        }
    };
    struct Row {
        int32_t ids[kRowWidth];
        double scores[kRowWidth];
        int n = 0, order = 0;
    };
    struct Place {  // where a node of the tree stands
        Context context;
        double prob;
        int32_t depth, children;
    };
    struct Open {  // a candidate that may become a node
        double prob;
        int32_t number;  // of those before it, breaks ties
        int32_t parent, token;
        uint8_t source;
    };

    Context end_of_text();
    void follow_corpus();
    Context child(const Context& parent, int32_t token) const;
    Row ranked_row(const Context& at, const Sampling& sampling, int64_t position) const;
    int candidates(const Context& at, const Sampling& sampling, int64_t position, Candidate* out) const;
    int suffix_candidates(const Context& at, const Row& row, Order order, Candidate* out) const;
    int link_candidates(const Links& links, const Row& row, Order order, int n, Candidate* out) const;
    int corpus_candidates(const Context& at, const Row& row, Order order, int n, Candidate* out) const;
    static bool taken(const Candidate* found, int n, int32_t token);
    int recycled_candidates(const Row& row, Order order, int suffixes, Candidate* out) const;
    void score(int32_t token, const Context& at, const Sampling& sampling, int64_t position);
    void compare_orders(int32_t token, const Context& at, const Sampling& sampling, int64_t position);
    static bool later(const Open& a, const Open& b);
    void expand(const Place& at, int32_t parent, const Sampling& sampling, int64_t position);

    SuffixAutomaton own_;
    int32_t in_own_, in_written_ = -1;  // number of the text in both
    std::vector<int32_t> text_;
    RecycleTable& table_;
    Calibration calibration_;
    bool use_suffix_, use_recycle_;
    SuffixAutomaton* written_;
    const Corpus* corpus_;
    Corpus::Match in_corpus_;  // of the end of the text, when it had `followed_` tokens
    int64_t followed_ = 0;
    double plain_score_ = 0, coupled_score_ = 0;

    // Of the last tree; kept to reuse their memory.
    std::vector<Node> nodes_;
    std::vector<Place> places_;
    std::vector<Open> heap_;
    int32_t pushes_ = 0;
};
