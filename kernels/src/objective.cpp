// The objective's scan: the prefix of a draft, and the batch width, of the highest expected rate.
// Reference: specx/kernels/objective_reference.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple best_prefix(const Floats& probs, const Ints& parents, const Doubles& costs, double host_ms,
                      double leaf_ms) {
    const size_t n = probs.shape(0);
    if (parents.shape(0) != n) throw std::invalid_argument("probs and parents differ in length");
    std::vector<double> gains(n + 1, 1.0);
    std::vector<int> leaves(n + 1, 0);  // beyond the first
    std::vector<char> has_child(n + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        const int32_t parent = parents.data()[i];
        if (parent < -1 || parent >= static_cast<int32_t>(i)) throw std::invalid_argument("parents come first");
        gains[i + 1] = gains[i] + static_cast<double>(probs.data()[i]);
        leaves[i + 1] = leaves[i] + has_child[parent + 1];
        has_child[parent + 1] = 1;
    }
    size_t best_nodes = 0, best_width = 0;
    double best_gain = 0.0, best_time = 0.0, best_rate = -1.0;
    for (size_t width = 1; width < costs.shape(0); ++width) {
        if (!std::isfinite(costs.data()[width])) continue;
        const size_t nodes = std::min(width - 1, n);
        const double time = costs.data()[width] + host_ms + leaf_ms * leaves[nodes];
        const double rate = gains[nodes] / time;
        if (rate > best_rate) {
            best_rate = rate;
            best_nodes = nodes, best_width = width, best_gain = gains[nodes], best_time = time;
        }
    }
    if (best_width == 0) throw std::invalid_argument("no width has a finite cost");
    return nb::make_tuple(best_nodes, best_width, leaves[best_nodes], best_gain, best_time);
}

}  // namespace

void bind_objective(nb::module_& m) {
    m.def("best_prefix", &best_prefix, "probs"_a, "parents"_a, "costs"_a, "host_ms"_a, "leaf_ms"_a);
}
