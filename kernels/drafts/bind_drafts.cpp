// Python classes of the automaton, the table and the trie. All arrays are C-contiguous and shared, never
// copied on the way in; what comes out is the caller's own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bound_drafts.hpp"
#include "bound_rows.hpp"
#include "corpus.hpp"
#include "free_trie.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using IntRows = Shared<const int32_t, nb::ndim<2>>;
using FloatRows = Shared<const float, nb::ndim<2>>;

nb::tuple match(const SuffixAutomaton& automaton, int32_t text, int count) {
    require(count >= 0, "count is negative");
    count = std::min(count, SuffixAutomaton::kMatchHops);
    std::vector<int32_t> ends(static_cast<size_t>(count)), lengths(static_cast<size_t>(count));
    const size_t n = static_cast<size_t>(automaton.match(text, count, ends.data(), lengths.data()));
    return nb::make_tuple(new_array<int32_t>({n}, [&](int32_t* p) { std::copy_n(ends.begin(), n, p); }),
                          new_array<int32_t>({n}, [&](int32_t* p) { std::copy_n(lengths.begin(), n, p); }));
}

nb::tuple tokens_of(const SuffixAutomaton& automaton) {
    const size_t n = static_cast<size_t>(automaton.size());
    const auto column = [&](auto value) {
        return new_array<int32_t>({n}, [&](int32_t* p) {
            for (size_t i = 0; i < n; ++i) p[i] = value(static_cast<int64_t>(i));
        });
    };
    return nb::make_tuple(column([&](int64_t i) { return automaton.token(i); }),
                          column([&](int64_t i) { return automaton.text_of(i); }));
}

void update(RecycleTable& table, const Ints& previous, const Ints& tokens, const FloatRows& logits) {
    const size_t n = tokens.shape(0);
    require(previous.shape(0) == n && logits.shape(0) == n, "previous, tokens and logits differ in length");
    require(logits.shape(1) == static_cast<size_t>(table.vocab_size()), "logits are not of this vocabulary");
    LogitRows rows(logits.data(), n, table.vocab_size());
    for (size_t i = 0; i < n; ++i)
        table.update(previous.data()[i], tokens.data()[i], rows[i]);
}

// Rows from elsewhere may end early with -1.
int known_ids(const RecycleTable& table, const int32_t* row, size_t width) {
    size_t n = 0;
    while (n < width && row[n] >= 0) ++n;
    require(std::all_of(row, row + n, [&](int32_t id) { return id < table.vocab_size(); }),
            "a row has an id outside the vocabulary");
    return static_cast<int>(n);
}

void update_top(RecycleTable& table, const Ints& previous, const Ints& tokens, const IntRows& ids,
                const FloatRows& logits) {
    const size_t n = tokens.shape(0), width = ids.shape(1);
    require(previous.shape(0) == n && ids.shape(0) == n, "previous, tokens and ids differ in length");
    require(logits.shape(0) == n && logits.shape(1) == width, "ids and logits differ in shape");
    for (size_t i = 0; i < n; ++i) {
        const int32_t* row = ids.data() + i * width;
        table.update(previous.data()[i], tokens.data()[i], row, logits.data() + i * width,
                     known_ids(table, row, width));
    }
}

nb::tuple row_arrays(const RecycleTable& table, const RecycleTable::Row& row) {
    size_t n = 0;
    while (row.order > 0 && n < static_cast<size_t>(table.k()) && row.ids[n] >= 0) ++n;
    return nb::make_tuple(new_array<int32_t>({n}, [&](int32_t* p) { std::copy_n(row.ids, n, p); }),
                          new_array<float>({n}, [&](float* p) { std::copy_n(row.logits, n, p); }), row.order);
}

nb::tuple export_rows(const RecycleTable& table) {
    const std::vector<int32_t> used = table.used();
    const size_t n = used.size(), k = static_cast<size_t>(table.k());
    return nb::make_tuple(
        new_array<int32_t>({n}, [&](int32_t* p) { std::copy(used.begin(), used.end(), p); }),
        new_array<int32_t>({n, k}, [&](int32_t* p) {
            for (size_t i = 0; i < n; ++i) std::copy_n(table.first_order(used[i]).ids, k, p + i * k);
        }),
        new_array<float>({n, k}, [&](float* p) {
            for (size_t i = 0; i < n; ++i) std::copy_n(table.first_order(used[i]).logits, k, p + i * k);
        }));
}

void restore_rows(RecycleTable& table, const Ints& tokens, const IntRows& ids, const FloatRows& logits) {
    const size_t n = tokens.shape(0), width = ids.shape(1);
    require(ids.shape(0) == n && logits.shape(0) == n && logits.shape(1) == width,
            "tokens, ids and logits differ in shape");
    for (size_t i = 0; i < n; ++i) {
        const int32_t* row = ids.data() + i * width;
        table.update(-1, tokens.data()[i], row, logits.data() + i * width, known_ids(table, row, width));
    }
}

nb::object suffixes_of(const Ints& tokens) {
    const size_t n = tokens.shape(0);
    require(n < size_t{1} << 30, "a corpus has less than 2^30 tokens");
    std::vector<int32_t> text(tokens.data(), tokens.data() + n);
    int32_t largest = 0;
    for (int32_t& token : text) {
        require(token >= Corpus::kSeparator && token < Corpus::kTokens, "a token of the corpus is of no vocabulary");
        largest = std::max(largest, ++token);  // separators come first
    }
    const std::vector<int32_t> rows = suffix_array(text, largest);
    return new_array<int32_t>({n}, [&](int32_t* p) { std::copy(rows.begin(), rows.end(), p); });
}

// A corpus with the arrays that it borrows.
struct BoundCorpus {
    BoundCorpus(Ints tokens_, Ints suffixes_)
        : tokens(std::move(tokens_)),
          suffixes(std::move(suffixes_)),
          corpus(tokens.data(), suffixes.data(), static_cast<int32_t>(tokens.shape(0))) {
        require(tokens.shape(0) == suffixes.shape(0), "tokens and suffixes differ in length");
        require(tokens.shape(0) < size_t{1} << 30, "a corpus has less than 2^30 tokens");
    }

    Ints tokens, suffixes;
    Corpus corpus;
};

nb::tuple match_in_corpus(const BoundCorpus& self, const std::vector<int32_t>& text) {
    Corpus::Match at;
    for (const int32_t token : text) at = self.corpus.advance(at, token);
    Corpus::Continuation found[Corpus::kContinuations];
    const int n = at.length > 0 ? self.corpus.continuations(at, found) : 0;
    nb::list follow;
    for (int i = 0; i < n; ++i) follow.append(nb::make_tuple(found[i].token, found[i].share));
    return nb::make_tuple(at.length, at.last - at.first, follow);
}

// A trie with the arrays and the table that it borrows.
struct BoundTrie {
    using Counts = Shared<float, nb::shape<Calibration::kCells, 2>>;
    using Prior = Shared<const float, nb::shape<Calibration::kCells>>;

    BoundTrie(RecycleTable& table, Counts counts_, Prior prior_, bool use_suffix, bool use_recycle,
              SuffixAutomaton* written, const BoundCorpus* corpus)
        : counts(std::move(counts_)),
          prior(std::move(prior_)),
          trie(table, {counts.data(), prior.data()}, use_suffix, use_recycle, written,
               corpus ? &corpus->corpus : nullptr) {}

    Counts counts;
    Prior prior;
    FreeTrie trie;
};

void observe(BoundTrie& self, const std::vector<int32_t>& tokens, uint64_t seed, int64_t position,
             double temperature) {
    for (size_t i = 0; i < tokens.size(); ++i)
        self.trie.observe(tokens[i], {seed, temperature, false}, position + static_cast<int64_t>(i));
}

// What fills a step up, at its end, says nothing.
void update_tree(BoundTrie& self, int32_t previous, int32_t token, const BoundDraft& draft, BoundRows& logits) {
    size_t n = draft.nodes.size();
    while (n > 0 && draft.nodes[n - 1].prob == 0.0f) --n;
    require(logits.rows.size() >= n + 1, "logits need one row for the root and one for each node");
    require(logits.rows.vocab_size() == self.trie.table().vocab_size(), "logits are not of this vocabulary");
    self.trie.update_tree(previous, token, draft.nodes.data(), logits.rows, static_cast<int64_t>(n));
}

BoundDraft grow(BoundTrie& self, int limit, int leaves, uint64_t seed, int64_t position, double temperature,
               bool coupled, const std::vector<int32_t>& path) {
    return {self.trie.grow(limit, leaves, {seed, temperature, coupled}, position, path)};
}

template <size_t N>
nb::tuple as_tuple(const std::array<int, N>& values) {
    nb::list items;
    for (const int value : values) items.append(value);
    return nb::tuple(items);
}

void bind_automaton(nb::module_& m) {
    nb::class_<SuffixAutomaton>(m, "SuffixAutomaton")
        .def(nb::init<bool>(), "apart"_a = false)
        .def("begin", &SuffixAutomaton::begin)
        .def("append", [](SuffixAutomaton& self, int32_t text, const Ints& tokens) {
            for (size_t i = 0; i < tokens.shape(0); ++i) self.append(text, tokens.data()[i]);
        }, "text"_a, "tokens"_a)
        .def("end", &SuffixAutomaton::end, "text"_a)
        .def("match", &match, "text"_a, "count"_a)
        .def("tokens", &tokens_of)
        .def("reserve", &SuffixAutomaton::reserve, "more"_a)
        .def("forget", &SuffixAutomaton::forget, "keep"_a)
        .def("clear", &SuffixAutomaton::clear)
        .def("__len__", &SuffixAutomaton::size);
}

void bind_table(nb::module_& m) {
    nb::class_<RecycleTable>(m, "RecycleTable")
        .def(nb::init<int32_t, int, int>(), "vocab_size"_a, "k"_a = 8, "contexts"_a = 1 << 16)
        .def("update", &update, "previous"_a, "tokens"_a, "logits"_a)
        .def("update_top", &update_top, "previous"_a, "tokens"_a, "ids"_a, "logits"_a)
        .def("lookup", [](const RecycleTable& self, int32_t previous, int32_t token) {
            return row_arrays(self, self.lookup(previous, token));
        }, "previous"_a, "token"_a)
        .def("export", &export_rows)
        .def("restore", &restore_rows, "tokens"_a, "ids"_a, "logits"_a)
        .def("clear", &RecycleTable::clear);
}

void bind_corpus(nb::module_& m) {
    m.def("suffix_array", &suffixes_of, "tokens"_a);
    nb::class_<BoundCorpus>(m, "Corpus")
        .def(nb::init<Ints, Ints>(), nb::arg("tokens").noconvert(), nb::arg("suffixes").noconvert())
        .def("match", &match_in_corpus, "text"_a)
        .def("__len__", [](const BoundCorpus& self) { return self.corpus.size(); });
}

void bind_trie(nb::module_& m) {
    nb::class_<BoundTrie>(m, "FreeTrie")
        .def(nb::init<RecycleTable&, BoundTrie::Counts, BoundTrie::Prior, bool, bool, SuffixAutomaton*,
                      const BoundCorpus*>(),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>(), "table"_a,
             nb::arg("counts").noconvert(), nb::arg("prior").noconvert(), "use_suffix"_a = true,
             "use_recycle"_a = true, nb::arg("written").none() = nb::none(), nb::arg("corpus").none() = nb::none())
        .def("begin", [](BoundTrie& self, const Ints& context, int64_t shared) {
            self.trie.begin(context.data(), static_cast<int64_t>(context.shape(0)), shared);
        }, "context"_a, "shared"_a = 0)
        .def("append", [](BoundTrie& self, int32_t token) { self.trie.append(token); }, "token"_a)
        .def("observe", &observe, "tokens"_a, "seed"_a = 0, "position"_a = 0, "temperature"_a = 0.0)
        .def("update_tree", &update_tree, "previous"_a, "token"_a, "draft"_a, "logits"_a)
        .def("grow", &grow, "limit"_a, "leaves"_a, "seed"_a = 0, "position"_a = 0, "temperature"_a = 0.0,
             "coupled"_a = false, "path"_a = std::vector<int32_t>())
        .def_prop_ro("order_scores", [](const BoundTrie& self) {
            return nb::make_tuple(self.trie.plain_score(), self.trie.coupled_score());
        });
}

}  // namespace

void bind_drafts(nb::module_& m) {
    m.attr("SUFFIX_SHAPE") = as_tuple(Calibration::kSuffixShape);
    m.attr("RECYCLE_SHAPE") = as_tuple(Calibration::kRecycleShape);
    bind_automaton(m);
    bind_table(m);
    bind_corpus(m);
    bind_trie(m);
}
