// LogitRows for Python, with the array they are in.
#pragma once

#include "arrays.hpp"
#include "topk.hpp"

struct BoundRows {
    using Array = Shared<const float, nanobind::ndim<2>>;

    explicit BoundRows(Array array_)
        : array(std::move(array_)), rows(array.data(), array.shape(0), static_cast<int>(array.shape(1))) {}

    Array array;
    LogitRows rows;
};
