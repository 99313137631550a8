// The objective of one text: the prefix of a draft, and the batch width, of the highest expected rate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "merge.hpp"

// What batches cost, in milliseconds.
struct StepCosts {
    const double* by_width;  // (widths,); infinite where a width is not allowed
    size_t widths;
    double host_ms, leaf_ms, most_ms;  // no batch may cost more than most_ms by its width
};

struct BestPrefix {
    int leaf = -1;  // of the chain that is taken; -1: the draft as it is
    size_t nodes = 0, width = 0;
    int leaves = 0;  // beyond the first
    double gain = 0.0, time = 0.0, rate = -1.0;
};

// Throws if no width is allowed.
BestPrefix best_prefix(const DraftNodes& draft, const StepCosts& costs, bool one_leaf);

// The same of a chain whose first i tokens give gains[i] expected tokens in all; gains (n + 1,).
BestPrefix best_of_chain(const std::vector<double>& gains, const StepCosts& costs);
