#include "merge.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

namespace {

constexpr double kLeastRest = 1e-6, kLeastProbability = 1e-9;  // divisors
constexpr double kInherited = -1.0;                            // a factor that is that of the parent

// The tree while it grows; the draft's own nodes come first.
struct Merged {
    DraftNodes nodes;
    std::vector<double> probs;
    std::vector<double> factors;  // of the draft's nodes: their probability now by that before
};

// The child of `parent` with this token among the first n nodes, -1 if there is none.
int child_of(const DraftNodes& nodes, size_t n, int parent, int32_t token) {
    for (size_t i = static_cast<size_t>(parent + 1); i < n; ++i)
        if (nodes[i].parent == parent && nodes[i].token == token) return static_cast<int>(i);
    return -1;
}

// Puts the chain into the tree, and notes by what it changes the probabilities of the draft's nodes.
void lay_chain(Merged& tree, size_t own, const std::vector<int32_t>& tokens, const std::vector<double>& hazards,
               uint8_t source) {
    int at = -1;  // the chain's last node, with its probability in the draft and now
    double above = 1.0, path = 1.0;
    for (size_t depth = 0; depth < tokens.size(); ++depth) {
        int same = -1;
        if (at < static_cast<int>(own)) {
            same = child_of(tree.nodes, own, at, tokens[depth]);
            const double mass = same >= 0 ? tree.probs[same] / above : 0.0;
            const double rest = (1 - hazards[depth]) / std::max(1 - mass, kLeastRest);
            for (size_t i = static_cast<size_t>(at + 1); i < own; ++i)
                if (tree.nodes[i].parent == at) tree.factors[i] = rest * path / above;
        }
        path *= hazards[depth];
        if (same >= 0) {
            above = std::max(tree.probs[same], kLeastProbability);
            tree.factors[same] = path / above;
            at = same;
        } else {
            tree.nodes.push_back({tokens[depth], at, 0.0f, source});
            tree.probs.push_back(path);
            at = static_cast<int>(tree.nodes.size()) - 1;
            above = path;
        }
    }
}

// By falling probability, parents first, whatever is said to be probable: rounding must not lift a node above its
// parent, nor may a drafter.
template <class Prob>
DraftNodes ordered(const DraftNodes& nodes, std::vector<Prob> probs) {
    const size_t n = nodes.size();
    for (size_t i = 0; i < n; ++i) {
        if (std::isnan(probs[i])) probs[i] = 0;
        if (nodes[i].parent >= 0) probs[i] = std::min(probs[i], probs[static_cast<size_t>(nodes[i].parent)]);
    }
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    // Stable, and a parent has the smaller index.
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return probs[a] > probs[b]; });
    std::vector<int32_t> place(n);
    for (size_t i = 0; i < n; ++i) place[order[i]] = static_cast<int32_t>(i);
    DraftNodes sorted;
    sorted.reserve(n);
    for (const size_t old : order) {
        FreeTrie::Node node = nodes[old];
        if (node.parent >= 0) node.parent = place[static_cast<size_t>(node.parent)];
        node.prob = static_cast<float>(probs[old]);
        sorted.push_back(node);
    }
    return sorted;
}

// The node that the tokens `path` lead to, -1 for the root; no value if it is not in the draft.
std::optional<int> node_at(const DraftNodes& draft, const std::vector<int32_t>& path) {
    int at = -1;
    for (const int32_t token : path) {
        at = child_of(draft, draft.size(), at, token);
        if (at < 0) return std::nullopt;
    }
    return at;
}

}  // namespace

DraftNodes merge_chain(const DraftNodes& draft, const std::vector<int32_t>& tokens,
                       const std::vector<double>& hazards, uint8_t source) {
    if (tokens.size() != hazards.size()) throw std::invalid_argument("chain and hazards differ in length");
    const size_t own = draft.size();
    Merged tree{draft, {}, std::vector<double>(own, kInherited)};
    tree.nodes.reserve(own + tokens.size());
    for (const FreeTrie::Node& node : draft) tree.probs.push_back(node.prob);
    lay_chain(tree, own, tokens, hazards, source);
    for (size_t i = 0; i < own; ++i) {
        const int32_t parent = draft[i].parent;
        if (tree.factors[i] == kInherited) tree.factors[i] = parent >= 0 ? tree.factors[parent] : 1.0;
        tree.probs[i] *= tree.factors[i];
    }
    return ordered(tree.nodes, std::move(tree.probs));
}

DraftNodes graft(const DraftNodes& draft, const std::vector<int32_t>& path, const DraftNodes& below) {
    const std::optional<int> at = node_at(draft, path);
    if (!at) throw std::invalid_argument("the draft does not have the path");
    const int32_t own = static_cast<int32_t>(draft.size());
    const float above = *at < 0 ? 1.0f : draft[static_cast<size_t>(*at)].prob;
    DraftNodes nodes = draft;
    nodes.reserve(draft.size() + below.size());
    std::vector<float> probs;
    probs.reserve(draft.size() + below.size());
    for (const FreeTrie::Node& node : draft) probs.push_back(node.prob);
    for (FreeTrie::Node node : below) {
        node.parent = node.parent < 0 ? *at : node.parent + own;
        nodes.push_back(node);
        probs.push_back(node.prob * above);
    }
    return ordered(nodes, std::move(probs));
}

int32_t token_after(const DraftNodes& draft, const std::vector<int32_t>& path) {
    const std::optional<int> at = node_at(draft, path);
    if (!at) return -1;
    for (size_t i = static_cast<size_t>(*at + 1); i < draft.size(); ++i)
        if (draft[i].parent == *at) return draft[i].token;
    return -1;
}

size_t child_row(const DraftNodes& draft, size_t row, int32_t token) {
    return static_cast<size_t>(child_of(draft, draft.size(), static_cast<int>(row) - 1, token) + 1);
}

DraftNodes path_to(const DraftNodes& draft, size_t leaf) {
    DraftNodes path;
    for (int at = static_cast<int>(leaf); at >= 0; at = draft[static_cast<size_t>(at)].parent)
        path.push_back(draft[static_cast<size_t>(at)]);
    std::reverse(path.begin(), path.end());
    for (size_t i = 0; i < path.size(); ++i) path[i].parent = static_cast<int32_t>(i) - 1;
    return path;
}
