// Python classes of what is foreseen. Arrays are shared, never copied on the way in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "bound_costs.hpp"
#include "bound_counts.hpp"
#include "bound_foresight.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

void begin(BoundForesight* self, const BoundCounts& counts, bool noisy, const BoundDraft& claiming,
           const std::vector<int32_t>& path, double first, double later, std::vector<double> below,
           const BoundDraft& draft, std::vector<int32_t> chain, std::vector<double> hazards, uint8_t source) {
    require(chain.size() == hazards.size(), "chain and hazards differ in length");
    Foresight foresight(claims_after(claiming.nodes, path), counts.counts.beside_free(noisy), first, later,
                        std::move(below));
    new (self) BoundForesight{std::move(foresight), {draft.nodes, std::move(chain), std::move(hazards), source}};
}

nb::list drafts(const BoundForesight& self, int checked, int asked) {
    nb::list found;
    for (const Foresight::Coming& coming : self.foresight.coming(checked, asked))
        found.append(nb::make_tuple(coming.probability, BoundDraft{self.growing.with(coming)}));
    return found;
}

// Where `spent_ms` more is spent than is in the denominator anyhow.
std::pair<double, double> expected(const BoundForesight& self, int checked, int asked, double spent_ms,
                                   const BoundCosts& step) {
    return expected_step(self.foresight, self.growing, checked, asked, step.after(spent_ms), step.one_leaf);
}

// Numbers of calls are looked at in increasing order, until there is less to gain.
std::pair<double, double> gain(const BoundForesight& self, int checked, const std::vector<int>& times, int most,
                               double before_ms, double each_ms, double affordable_ms, double rate,
                               const BoundCosts& step) {
    double best_ms = 0.0, best_tokens = 0.0, last_ms = 0.0;
    for (const int asked : times) {
        const double spent_ms = before_ms + asked * each_ms;
        if (asked > most || spent_ms > affordable_ms) break;
        const auto [tokens, ms] = expected(self, checked, asked, spent_ms, step);
        const double gain_ms = std::max(tokens / rate - ms, 0.0);
        if (gain_ms > best_ms) {
            best_ms = gain_ms;
            best_tokens = tokens;
        }
        if (gain_ms < last_ms) break;
        last_ms = gain_ms;
    }
    return {best_ms, best_tokens};
}

}  // namespace

void bind_foresight(nb::module_& m) {
    nb::class_<BoundForesight>(m, "Foresight")
        .def("__init__", &begin, "counts"_a, "noisy"_a, "claiming"_a, "path"_a, "first"_a, "later"_a, "below"_a,
             "draft"_a, "chain"_a, "hazards"_a, "source"_a)
        .def_prop_ro("claims", [](const BoundForesight& self) {
            const Claims& claims = self.foresight.claims();
            return nb::make_tuple(claims.tokens, claims.hazards);
        })
        .def_prop_ro("likely", [](const BoundForesight& self) { return self.foresight.likely(); })
        .def("worth_checking", [](const BoundForesight& self, int most, double further_ms, double token_ms) {
            return self.foresight.worth_checking(most, further_ms, token_ms);
        }, "most"_a, "further_ms"_a, "token_ms"_a)
        .def("drafts", &drafts, "checked"_a, "asked"_a)
        .def("expected", &expected, "checked"_a, "asked"_a, "spent_ms"_a, "costs"_a)
        .def("gain", &gain, "checked"_a, "times"_a, "most"_a, "before_ms"_a, "each_ms"_a, "affordable_ms"_a, "rate"_a,
             "costs"_a);
}
