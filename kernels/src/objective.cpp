// The objective's scan: the prefix of a draft, and the batch width, of the highest expected rate.
// Reference: specx/kernels/reference/objective.py.
#include "objective.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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
void consider_chain(const float* probs, const int32_t* parents, int leaf, const StepCosts& costs, BestPrefix& best) {
    std::vector<int> path;
    for (int node = leaf; node >= 0; node = parents[node]) path.push_back(node);
    std::vector<double> gains(path.size() + 1, 1.0);
    for (size_t i = 0; i < path.size(); ++i)
        gains[i + 1] = gains[i] + static_cast<double>(probs[path[path.size() - 1 - i]]);
    consider(gains, nullptr, costs, leaf, best);
}

nb::tuple best_of(const Floats& probs, const Ints& parents, const Doubles& by_width, double host_ms, double leaf_ms,
                  double most_ms, bool one_leaf) {
    const size_t n = probs.shape(0);
    if (parents.shape(0) != n) throw std::invalid_argument("probs and parents differ in length");
    const StepCosts costs{by_width.data(), by_width.shape(0), host_ms, leaf_ms, most_ms};
    const BestPrefix best = best_prefix(probs.data(), parents.data(), n, costs, one_leaf);
    return nb::make_tuple(best.leaf, best.nodes, best.width, best.leaves, best.gain, best.time);
}

}  // namespace

BestPrefix best_prefix(const float* probs, const int32_t* parents, size_t n, const StepCosts& costs, bool one_leaf) {
    std::vector<double> gains(n + 1, 1.0);
    std::vector<int> leaves(n + 1, 0);
    std::vector<char> has_child(n + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        const int32_t parent = parents[i];
        if (parent < -1 || parent >= static_cast<int32_t>(i)) throw std::invalid_argument("parents come first");
        gains[i + 1] = gains[i] + static_cast<double>(probs[i]);
        leaves[i + 1] = leaves[i] + has_child[parent + 1];
        has_child[parent + 1] = 1;
    }
    BestPrefix best;
    if (!one_leaf || leaves[n] == 0) {
        consider(gains, leaves.data(), costs, -1, best);
    } else {
        for (size_t i = 0; i < n; ++i)
            if (!has_child[i + 1]) consider_chain(probs, parents, static_cast<int>(i), costs, best);
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
    m.def("best_prefix", &best_of, "probs"_a, "parents"_a, "costs"_a, "host_ms"_a, "leaf_ms"_a,
          "most_ms"_a = std::numeric_limits<double>::infinity(), "one_leaf"_a = false);
}
