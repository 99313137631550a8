// What is foreseen of a source, as Python has it.
#pragma once

#include "foresight.hpp"

// What is foreseen, and where it goes.
struct BoundForesight {
    Foresight foresight;
    Growing growing;
};
