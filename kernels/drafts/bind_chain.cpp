// Python classes of what a source that costs time has given, and of how often that is right. Arrays of counts are
// shared, and learned further in place.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "asked_chain.hpp"
#include "bound_counts.hpp"
#include "bound_drafts.hpp"
#include "bound_foresight.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Cell = std::tuple<int, int, int, int>;
using Place = std::tuple<int, int>;

ModelCounts::Cell cell_of(const Cell& cell) {
    const ModelCounts::Cell found{std::get<0>(cell), std::get<1>(cell), std::get<2>(cell), std::get<3>(cell)};
    require(found.order >= 0 && found.order < ModelCounts::kOrders && found.margin >= 0 &&
                found.margin < ModelCounts::kBuckets && found.depth >= 0 && found.depth < ModelCounts::kDeep &&
                found.agreement >= 0 && found.agreement < ModelCounts::kAgreements,
            "there is no such cell");
    return found;
}

ModelCounts::Place place_of(const Place& place) {
    const ModelCounts::Place found{std::get<0>(place), std::get<1>(place)};
    require(found.order >= 0 && found.order < ModelCounts::kOrders && found.at >= 0 && found.at < ModelCounts::kPlaces,
            "there is no such place");
    return found;
}

Cell cell(bool noisy, double margin, int depth, int agreement) {
    require(agreement >= 0 && agreement < ModelCounts::kAgreements, "there is no such agreement");
    const ModelCounts::Cell found =
        ModelCounts::cell(noisy, margin, depth, static_cast<ModelCounts::Agreement>(agreement));
    return {found.order, found.margin, found.depth, found.agreement};
}

std::vector<std::tuple<double, double, double>> expected_beside(const BoundCounts& self, bool noisy,
                                                                const std::vector<double>& hazards) {
    std::vector<std::tuple<double, double, double>> found;
    for (const double hazard : hazards) {
        const Beside at = self.counts.beside_free(noisy).expected(hazard);
        found.emplace_back(at.said, at.right, at.both);
    }
    return found;
}

void bind_counts(nb::module_& m) {
    m.attr("MODEL_SHAPE") = nb::make_tuple(ModelCounts::kOrders, ModelCounts::kBuckets, ModelCounts::kDeep,
                                           ModelCounts::kAgreements);
    m.attr("PLACE_SHAPE") = nb::make_tuple(ModelCounts::kOrders, ModelCounts::kPlaces);
    m.attr("BESIDE_SHAPE") = nb::make_tuple(ModelCounts::kOrders, ModelCounts::kSureCells, 2);
    nb::class_<BoundCounts>(m, "ModelCounts")
        .def(nb::init<Counts, Counts, Counts, Counts, Counts, Counts, Counts>(), nb::arg("cells").noconvert(),
             nb::arg("margins").noconvert(), nb::arg("forecasts").noconvert(), nb::arg("all").noconvert(),
             nb::arg("beside").noconvert(), nb::arg("agreed").noconvert(), nb::arg("tokens").noconvert())
        .def_static("cell", &cell, "noisy"_a, "margin"_a, "depth"_a, "agreement"_a)
        .def_static("first", [](bool noisy, double free) {
            const ModelCounts::Place at = ModelCounts::first(noisy, free);
            return Place{at.order, at.at};
        }, "noisy"_a, "free"_a)
        .def_static("following", [](bool noisy, double margin) {
            const ModelCounts::Place at = ModelCounts::following(noisy, margin);
            return Place{at.order, at.at};
        }, "noisy"_a, "margin"_a)
        .def("hazard", [](const BoundCounts& self, const Cell& at) { return self.counts.hazard(cell_of(at)); },
             "cell"_a)
        .def("forecast", [](const BoundCounts& self, const Place& at) { return self.counts.forecast(place_of(at)); },
             "place"_a)
        .def("later", [](const BoundCounts& self, bool noisy) { return self.counts.later(noisy); }, "noisy"_a)
        .def("expected_beside", &expected_beside, "noisy"_a, "hazards"_a)
        .def("score", [](BoundCounts& self, const Cell& at, const Place& place, bool right) {
            self.counts.score(cell_of(at), place_of(place), right);
        }, "cell"_a, "place"_a, "right"_a)
        .def("score_beside", [](BoundCounts& self, bool noisy, double free, bool free_right, bool right) {
            self.counts.score_beside(noisy, free, free_right, right);
        }, "noisy"_a, "free"_a, "free_right"_a, "right"_a)
        .def("score_said", [](BoundCounts& self, bool noisy, double free, bool said) {
            self.counts.score_said(noisy, free, said);
        }, "noisy"_a, "free"_a, "said"_a);
}

// A chain with what it borrows.
struct BoundChain {
    BoundChain(Below& below, uint8_t source) : chain(below, source) {}

    AskedChain chain;
    nb::object counts;
};

using Others = std::vector<const BoundChain*>;

std::vector<const AskedChain*> chains_of(const Others& others) {
    std::vector<const AskedChain*> chains;
    for (const BoundChain* other : others) {
        require(other != nullptr, "a chain is None");
        chains.push_back(&other->chain);
    }
    return chains;
}

void begin(BoundChain& self, nb::object counts, bool noisy, const BoundDraft& free, bool one_leaf) {
    self.chain.begin(nb::cast<const BoundCounts&>(counts).counts, noisy, free.nodes, one_leaf);
    self.counts = std::move(counts);
}

BoundForesight foresee(const BoundChain& self, const Others& others) {
    auto [foresight, growing] = self.chain.foresee(chains_of(others));
    return {std::move(foresight), std::move(growing)};
}

void bind_asked(nb::module_& m) {
    nb::class_<Below>(m, "Below")
        .def(nb::init<>())
        .def("observe", [](Below& self, const std::vector<double>& hazards) { self.observe({{}, hazards}); },
             "hazards"_a)
        .def("hazards", &Below::hazards);
    nb::class_<BoundChain>(m, "AskedChain")
        .def(nb::init<Below&, uint8_t>(), nb::keep_alive<1, 2>(), "below"_a, "source"_a)
        .def("begin", &begin, "counts"_a, "noisy"_a, "free"_a, "one_leaf"_a)
        .def_prop_ro("tokens", [](const BoundChain& self) { return self.chain.tokens(); })
        .def("__len__", [](const BoundChain& self) { return self.chain.tokens().size(); })
        .def("foresee", &foresee, "others"_a = Others())
        .def("add", [](BoundChain& self, const std::vector<int32_t>& tokens, const std::vector<double>& margins) {
            return self.chain.add(tokens, margins);
        }, "tokens"_a, "margins"_a)
        .def("draft", [](BoundChain& self, const BoundDraft* below, const Others& others) {
            if (below) self.chain.go_on(below->nodes);
            return BoundDraft{self.chain.draft(chains_of(others))};
        }, nb::arg("below").none() = nb::none(), "others"_a = Others())
        .def("score", [](BoundChain& self, const std::vector<int32_t>& emitted) { return self.chain.score(emitted); },
             "emitted"_a);
}

}  // namespace

void bind_chain(nb::module_& m) {
    bind_counts(m);
    bind_asked(m);
}
