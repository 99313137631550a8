// What a step of one text costs, as Python has it.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "arrays.hpp"
#include "objective.hpp"

struct BoundCosts {
    using Doubles = Shared<const double, nanobind::ndim<1>>;

    BoundCosts(const Doubles& costs, double host_ms_, double leaf_ms_, double budget_, bool one_leaf_)
        : by_width(costs.data(), costs.data() + costs.shape(0)),
          host_ms(host_ms_),
          leaf_ms(leaf_ms_),
          budget(budget_),
          one_leaf(one_leaf_) {
        for (size_t n = 2; n < by_width.size(); ++n) wider_ms = std::min(wider_ms, by_width[n]);
        plain_ms = by_width.size() > 1 ? std::min(by_width[1], wider_ms) : wider_ms;
    }

    // The dearest call whose loss, if nothing drafted comes true, the budget covers beside `spent_ms`.
    double affordable_ms(double spent_ms) const { return std::max(plain_ms * (1 + budget) - spent_ms, plain_ms); }

    // The same where so much is spent besides.
    StepCosts after(double spent_ms) const {
        return {by_width.data(), by_width.size(), host_ms + spent_ms, leaf_ms, affordable_ms(spent_ms)};
    }

    std::vector<double> by_width;  // milliseconds of a call; infinite where a width is not allowed
    double host_ms, leaf_ms;
    double budget;    // plain steps that may be lost
    double plain_ms;  // the cheapest way to take one token
    double wider_ms = std::numeric_limits<double>::infinity();  // and more than one
    bool one_leaf;    // only chains are possible
};
