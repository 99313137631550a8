// Hits and trials of a source, as Python has them.
#pragma once

#include <initializer_list>
#include <vector>

#include "bound_drafts.hpp"
#include "model_counts.hpp"

using Counts = Shared<double>;

inline double* checked(const Counts& array, std::initializer_list<size_t> shape) {
    size_t axis = 0;
    require(array.ndim() == shape.size(), "the counts have another shape");
    for (const size_t n : shape) require(array.shape(axis++) == n, "the counts have another shape");
    return array.data();
}

// Counts with the arrays that they borrow.
struct BoundCounts {
    BoundCounts(Counts cells, Counts margins, Counts forecasts, Counts all, Counts beside, Counts agreed,
                Counts tokens)
        : arrays{cells, margins, forecasts, all, beside, agreed, tokens},
          counts{checked(cells, {kOrders, ModelCounts::kBuckets, ModelCounts::kDeep,
                                 ModelCounts::kAgreements, 2}),
                 checked(margins, {kOrders, ModelCounts::kBuckets, 2}),
                 checked(forecasts, {kOrders, ModelCounts::kPlaces, 2}),
                 checked(all, {kOrders, 2}),
                 checked(beside, {kOrders, ModelCounts::kSureCells, 2, 2}),
                 checked(agreed, {kOrders, ModelCounts::kSureCells, 2}),
                 checked(tokens, {2})} {}

    static constexpr size_t kOrders = ModelCounts::kOrders;

    std::vector<Counts> arrays;
    ModelCounts counts;
};
