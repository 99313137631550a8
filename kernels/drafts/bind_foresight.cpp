// Python classes of what is foreseen. Arrays are shared, never copied on the way in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bound_drafts.hpp"
#include "foresight.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// Counts with the arrays that they borrow.
struct BoundBeside {
    BoundBeside(Tables right_, Counts agreed_, Doubles edges_, Doubles priors_)
        : right(std::move(right_)),
          agreed(std::move(agreed_)),
          edges(std::move(edges_)),
          priors(std::move(priors_)),
          counts{right.data(), agreed.data(), edges.data(), right.shape(0), priors.data()} {
        const size_t cells = counts.cells;
        require(cells > 0 && right.shape(1) == 2 && right.shape(2) == 2 && agreed.shape(0) == cells &&
                    agreed.shape(1) == 2 && edges.shape(0) == cells - 1 && priors.shape(0) == 5,
                "the counts do not go together");
    }

    Tables right;
    Counts agreed;
    Doubles edges, priors;
    BesideCounts counts;
};

nb::list expected_beside(const BoundBeside& self, const std::vector<double>& hazards) {
    nb::list found;
    for (const double hazard : hazards) {
        const Beside at = self.counts.expected(hazard);
        found.append(nb::make_tuple(at.said, at.right, at.both));
    }
    return found;
}

nb::tuple bound_claims(const Ints& tokens, const Ints& parents, const Floats& probs,
                       const std::vector<int32_t>& path) {
    const Claims found = claims_after(nodes_of(tokens, parents, &probs, nullptr), path);
    return nb::make_tuple(found.tokens, found.hazards);
}

// What is foreseen of a source, and where it goes.
struct BoundForesight {
    Foresight foresight;
    Growing growing;
};

using DraftArrays = std::tuple<Ints, Ints, Floats, Bytes>;

DraftNodes draft_of(const DraftArrays& draft) {
    return nodes_of(std::get<0>(draft), std::get<1>(draft), &std::get<2>(draft), &std::get<3>(draft));
}

void begin(BoundForesight* self, const BoundBeside& beside, const DraftArrays& claiming,
           const std::vector<int32_t>& path, double first, double later, std::vector<double> below,
           const DraftArrays& draft, std::vector<int32_t> chain, std::vector<double> hazards, uint8_t source) {
    require(chain.size() == hazards.size(), "chain and hazards differ in length");
    Foresight foresight(claims_after(draft_of(claiming), path), beside.counts, first, later, std::move(below));
    new (self) BoundForesight{std::move(foresight), {draft_of(draft), std::move(chain), std::move(hazards), source}};
}

nb::list drafts(const BoundForesight& self, int checked, int asked) {
    nb::list found;
    for (const Foresight::Coming& coming : self.foresight.coming(checked, asked))
        found.append(nb::make_tuple(coming.probability, draft_arrays(self.growing.with(coming))));
    return found;
}

// For each number of calls, before which `spent_ms` more is spent than is to be in the denominator anyhow.
std::vector<std::pair<double, double>> expected(const BoundForesight& self, int checked,
                                                const std::vector<int>& asked, const std::vector<double>& spent_ms,
                                                const Doubles& by_width, double host_ms, double leaf_ms,
                                                double plain_ms, double most_ms, bool one_leaf) {
    require(asked.size() == spent_ms.size(), "every number of calls has its time");
    std::vector<std::pair<double, double>> found;
    for (size_t i = 0; i < asked.size(); ++i) {
        const double spent = spent_ms[i];
        const StepCosts costs{by_width.data(), by_width.shape(0), host_ms + spent, leaf_ms,
                              std::max(most_ms - spent, plain_ms)};
        found.push_back(expected_step(self.foresight, self.growing, checked, asked[i], costs, one_leaf));
    }
    return found;
}

}  // namespace

void bind_foresight(nb::module_& m) {
    m.def("claims_after", &bound_claims, "tokens"_a, "parents"_a, "probs"_a, "path"_a);
    nb::class_<BoundBeside>(m, "BesideCounts")
        .def(nb::init<Tables, Counts, Doubles, Doubles>(), nb::arg("right").noconvert(),
             nb::arg("agreed").noconvert(), nb::arg("edges").noconvert(), nb::arg("priors").noconvert())
        .def("expected", &expected_beside, "hazards"_a);
    nb::class_<BoundForesight>(m, "Foresight")
        .def("__init__", &begin, "beside"_a, "claiming"_a, "path"_a, "first"_a, "later"_a, "below"_a, "draft"_a,
             "chain"_a, "hazards"_a, "source"_a)
        .def_prop_ro("claims", [](const BoundForesight& self) {
            const Claims& claims = self.foresight.claims();
            return nb::make_tuple(claims.tokens, claims.hazards);
        })
        .def("worth_checking", [](const BoundForesight& self, int most, double further_ms, double token_ms) {
            return self.foresight.worth_checking(most, further_ms, token_ms);
        }, "most"_a, "further_ms"_a, "token_ms"_a)
        .def("drafts", &drafts, "checked"_a, "asked"_a)
        .def("expected", &expected, "checked"_a, "asked"_a, "spent_ms"_a, "costs"_a, "host_ms"_a, "leaf_ms"_a,
             "plain_ms"_a, "most_ms"_a, "one_leaf"_a);
}
