// Drafts as Python has them, and what bindings have in common.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

#include "arrays.hpp"
#include "merge.hpp"

using Ints = Shared<const int32_t, nanobind::ndim<1>>;
using Floats = Shared<const float, nanobind::ndim<1>>;
using Bytes = Shared<const uint8_t, nanobind::ndim<1>>;

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// A new NumPy array of the given shape, filled by `fill(T*)`.
template <class T, class Fill>
nanobind::object new_array(std::initializer_list<size_t> shape, Fill fill) {
    size_t n = 1;
    for (const size_t axis : shape) n *= axis;
    T* data = new T[n > 0 ? n : 1];
    nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    fill(data);
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(data, shape, owner));
}

// A tree of guessed tokens.
struct BoundDraft {
    DraftNodes nodes;
};
