// LogitRows for Python, with the array they are in.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "topk.hpp"

struct BoundRows {
    using Array = nanobind::ndarray<const float, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

    explicit BoundRows(Array array_)
        : array(std::move(array_)), rows(array.data(), array.shape(0), static_cast<int>(array.shape(1))) {}

    Array array;
    LogitRows rows;
};
