// Moving weights between ggml's layout and the packed one of formats.hpp, a group of 16 rows at a time.
#pragma once

#include <cstdint>

#include "formats.hpp"

namespace specx {

// Pack `rows` <= 16 rows of k weights, one after the other at `source`, into the group at `group`. Missing rows
// become zeros.
void pack_group(const Format& format, int64_t k, int rows, const uint8_t* source, uint8_t* group);

// The inverse, bit-exact.
void unpack_group(const Format& format, int64_t k, int rows, const uint8_t* group, uint8_t* source);

}  // namespace specx
