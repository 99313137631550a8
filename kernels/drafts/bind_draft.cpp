// The Python class of a draft. Its arrays are made when they are asked for: a step asks for few of them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "bound_drafts.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

void create(BoundDraft* self, const Ints& tokens, const Ints& parents, const Floats& probs, const Bytes& sources) {
    const size_t n = tokens.shape(0);
    require(parents.shape(0) == n && probs.shape(0) == n && sources.shape(0) == n,
            "the arrays of a draft differ in length");
    DraftNodes nodes(n);
    for (size_t i = 0; i < n; ++i) {
        const int32_t parent = parents.data()[i];
        require(parent >= -1 && parent < static_cast<int32_t>(i), "parents come first");
        nodes[i] = {tokens.data()[i], parent, probs.data()[i], sources.data()[i]};
    }
    new (self) BoundDraft{std::move(nodes)};
}

BoundDraft of_chain(const std::vector<int32_t>& tokens, const std::vector<float>& probs, uint8_t source) {
    require(tokens.size() == probs.size(), "tokens and probabilities differ in length");
    DraftNodes nodes;
    for (size_t i = 0; i < tokens.size(); ++i)
        nodes.push_back({tokens[i], static_cast<int32_t>(i) - 1, probs[i], source});
    return {std::move(nodes)};
}

template <class T>
nb::object column(const BoundDraft& self, T FreeTrie::Node::*member) {
    return new_array<T>({self.nodes.size()}, [&](T* p) {
        for (const FreeTrie::Node& node : self.nodes) *p++ = node.*member;
    });
}

BoundDraft head(const BoundDraft& self, size_t n) {
    return {DraftNodes(self.nodes.begin(), self.nodes.begin() + std::min(n, self.nodes.size()))};
}

BoundDraft chain(const BoundDraft& self, size_t leaf) {
    require(leaf < self.nodes.size(), "the draft has no such node");
    return {path_to(self.nodes, leaf)};
}

BoundDraft likeliest_chain(const BoundDraft& self) {
    size_t best = 0;
    std::vector<double> sums;
    for (const FreeTrie::Node& node : self.nodes) {
        sums.push_back(node.prob + (node.parent >= 0 ? sums[static_cast<size_t>(node.parent)] : 0.0));
        if (sums.back() > sums[best]) best = sums.size() - 1;
    }
    const bool is_chain = std::all_of(self.nodes.begin(), self.nodes.end(), [&](const FreeTrie::Node& node) {
        return node.parent == static_cast<int32_t>(&node - self.nodes.data()) - 1;
    });
    return is_chain ? self : BoundDraft{path_to(self.nodes, best)};
}

// What the likeliest way from the root leads to comes first, then what else its nodes lead to, the last one first.
BoundDraft depth_first(const BoundDraft& self) {
    const auto n = static_cast<int32_t>(self.nodes.size());
    std::vector<int32_t> first(n + 1, -1), next(n, -1), place(n), waiting;  // children, at the parent's index + 1
    for (int32_t i = n - 1; i >= 0; --i) {
        int32_t& head = first[self.nodes[i].parent + 1];
        next[i] = head;
        head = i;
    }
    DraftNodes nodes;
    if (n > 0) waiting.push_back(first[0]);
    while (!waiting.empty()) {
        const int32_t node = waiting.back();
        waiting.pop_back();
        if (next[node] >= 0) waiting.push_back(next[node]);
        if (first[node + 1] >= 0) waiting.push_back(first[node + 1]);
        const int32_t parent = self.nodes[node].parent;
        place[node] = static_cast<int32_t>(nodes.size());
        nodes.push_back(self.nodes[node]);
        nodes.back().parent = parent < 0 ? -1 : place[parent];
    }
    return {std::move(nodes)};
}

BoundDraft padded(const BoundDraft& self, int64_t n) {
    DraftNodes nodes = self.nodes;
    while (static_cast<int64_t>(nodes.size()) < n)
        nodes.push_back({0, static_cast<int32_t>(nodes.size()) - 1, 0.0f, 0});
    return {std::move(nodes)};
}

std::optional<int32_t> best_after(const BoundDraft& self, const std::vector<int32_t>& path) {
    const int32_t token = token_after(self.nodes, path);
    return token < 0 ? std::nullopt : std::optional<int32_t>(token);
}

// The rows of the tree that verifies it: the text's last token is the root.
nb::tuple tree(const BoundDraft& self, int32_t last) {
    const size_t n = self.nodes.size() + 1;
    return nb::make_tuple(new_array<int32_t>({n}, [&](int32_t* p) {
                              *p = last;
                              for (const FreeTrie::Node& node : self.nodes) *++p = node.token;
                          }),
                          new_array<int32_t>({n}, [&](int32_t* p) {
                              *p = -1;
                              for (const FreeTrie::Node& node : self.nodes) *++p = node.parent + 1;
                          }));
}

// Rows of that tree along a path.
std::vector<size_t> rows_along(const BoundDraft& self, const std::vector<int32_t>& tokens) {
    std::vector<size_t> rows = {0};
    for (const int32_t token : tokens) {
        const size_t row = child_row(self.nodes, rows.back(), token);
        require(row > 0, "the draft does not have the path");
        rows.push_back(row);
    }
    return rows;
}

}  // namespace

void bind_draft(nb::module_& m) {
    nb::class_<BoundDraft>(m, "Draft",
                           "A tree of guessed tokens, most promising first.\n\n"
                           "Every prefix of the nodes is itself a tree, and the best tree of so many: probabilities\n"
                           "never rise, and a parent comes before its children. It does not change.\n\n"
                           "Args:\n"
                           "    tokens: (n,) int32.\n"
                           "    parents: (n,) int32 index of the parent node; -1 hangs below the text's last token.\n"
                           "    probs: (n,) float32 estimated probability that the path to the node is accepted.\n"
                           "    sources: (n,) uint8 index into the drafter's `source_names`.")
        .def("__init__", &create, "tokens"_a, "parents"_a, "probs"_a, "sources"_a)
        .def_static("of_chain", &of_chain, "tokens"_a, "probs"_a, "source"_a = 0)
        .def_prop_ro("tokens", [](const BoundDraft& self) { return column(self, &FreeTrie::Node::token); })
        .def_prop_ro("parents", [](const BoundDraft& self) { return column(self, &FreeTrie::Node::parent); })
        .def_prop_ro("probs", [](const BoundDraft& self) { return column(self, &FreeTrie::Node::prob); })
        .def_prop_ro("sources", [](const BoundDraft& self) { return column(self, &FreeTrie::Node::source); })
        .def("__len__", [](const BoundDraft& self) { return self.nodes.size(); })
        .def("head", &head, "n"_a)
        .def("chain", &chain, "leaf"_a)
        .def("likeliest_chain", &likeliest_chain)
        .def("padded", &padded, "n"_a)
        .def("depth_first", &depth_first)
        .def("merged", [](const BoundDraft& self, const std::vector<int32_t>& tokens,
                          const std::vector<double>& hazards, uint8_t source) {
            return BoundDraft{merge_chain(self.nodes, tokens, hazards, source)};
        }, "tokens"_a, "hazards"_a, "source"_a)
        .def("grafted", [](const BoundDraft& self, const std::vector<int32_t>& path, const BoundDraft& below) {
            return BoundDraft{graft(self.nodes, path, below.nodes)};
        }, "path"_a, "below"_a)
        .def("best_after", &best_after, "path"_a)
        .def("tree", &tree, "last"_a)
        .def("rows_along", &rows_along, "tokens"_a);
}
