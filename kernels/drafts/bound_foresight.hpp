// What is foreseen of a source, as Python has it.
#pragma once

#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bound_drafts.hpp"
#include "foresight.hpp"

// What is foreseen, and where it goes.
struct BoundForesight {
    Foresight foresight;
    Growing growing;
};

using DraftArrays = std::tuple<Ints, Ints, Floats, Bytes>;

inline DraftNodes draft_of(const DraftArrays& draft) {
    return nodes_of(std::get<0>(draft), std::get<1>(draft), &std::get<2>(draft), &std::get<3>(draft));
}
