// The objective's scan: the prefix of a draft, and the batch width, of the highest expected rate.
// Reference: specx/kernels/reference/objective.py.
#include "objective.hpp"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "bound_costs.hpp"
#include "bound_drafts.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Looks at all widths for the prefixes of n nodes. gains (n + 1,) are those of each prefix, and so are leaves, which
// a chain has none of beyond the first.
void consider(const std::vector<double>& gains, const int* leaves, const StepCosts& costs, int leaf,
              BestPrefix& best) {
    const size_t n = gains.size() - 1;
    for (size_t width = 1; width < costs.widths; ++width) {
        const double cost = costs.by_width[width];
        if (!std::isfinite(cost) || cost > costs.most_ms) continue;
        const size_t nodes = std::min(width - 1, n);
        const int branches = leaves ? leaves[nodes] : 0;
        const double time = cost + costs.host_ms + costs.leaf_ms * branches;
        const double rate = gains[nodes] / time;
        if (rate > best.rate) best = {leaf, nodes, width, branches, gains[nodes], time, rate};
    }
}

void check(const BestPrefix& best) {
    if (best.width == 0) throw std::invalid_argument("no width has a cost that is allowed");
}

// The chain that ends at `leaf`, considered by itself.
void consider_chain(const DraftNodes& draft, int leaf, const StepCosts& costs, BestPrefix& best) {
    std::vector<double> gains = {1.0};
    for (const FreeTrie::Node& node : path_to(draft, static_cast<size_t>(leaf)))
        gains.push_back(gains.back() + static_cast<double>(node.prob));
    consider(gains, nullptr, costs, leaf, best);
}

nb::tuple best_of(const BoundCosts& self, const BoundDraft& draft, double spent_ms) {
    const BestPrefix best = best_prefix(draft.nodes, self.after(spent_ms), self.one_leaf);
    DraftNodes part = best.leaf < 0 ? draft.nodes : path_to(draft.nodes, static_cast<size_t>(best.leaf));
    part.resize(best.nodes);
    return nb::make_tuple(BoundDraft{std::move(part)}, best.width, best.leaves, best.gain, best.time);
}

}  // namespace

BestPrefix best_prefix(const DraftNodes& draft, const StepCosts& costs, bool one_leaf) {
    const size_t n = draft.size();
    std::vector<double> gains(n + 1, 1.0);
    std::vector<int> leaves(n + 1, 0);
    std::vector<char> has_child(n + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        const size_t above = static_cast<size_t>(draft[i].parent + 1);
        gains[i + 1] = gains[i] + static_cast<double>(draft[i].prob);
        leaves[i + 1] = leaves[i] + has_child[above];
        has_child[above] = 1;
    }
    BestPrefix best;
    if (!one_leaf || leaves[n] == 0) {
        consider(gains, leaves.data(), costs, -1, best);
    } else {
        for (size_t i = 0; i < n; ++i)
            if (!has_child[i + 1]) consider_chain(draft, static_cast<int>(i), costs, best);
    }
    check(best);
    return best;
}

BestPrefix best_of_chain(const std::vector<double>& gains, const StepCosts& costs) {
    BestPrefix best;
    consider(gains, nullptr, costs, -1, best);
    check(best);
    return best;
}

void bind_objective(nb::module_& m) {
    nb::class_<BoundCosts>(m, "StepCosts")
        .def(nb::init<const BoundCosts::Doubles&, double, double, double, bool>(), "by_width"_a, "host_ms"_a = 0.0,
             "leaf_ms"_a = 0.0, "budget"_a = std::numeric_limits<double>::infinity(), "one_leaf"_a = false)
        .def_ro("plain_ms", &BoundCosts::plain_ms)
        .def_ro("wider_ms", &BoundCosts::wider_ms)
        .def("affordable_ms", &BoundCosts::affordable_ms, "spent_ms"_a = 0.0)
        .def("best", &best_of, "draft"_a, "spent_ms"_a = 0.0);
}
