// Arrays of Python that are read, or written to, where they are.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <utility>

// C-contiguous, in memory that is aligned for its numbers. NumPy has arrays that are not, as views of bytes: those are
// refused as arrays of another type are.
template <class... Args>
struct Shared : nanobind::ndarray<Args..., nanobind::c_contig, nanobind::device::cpu> {
    using Base = nanobind::ndarray<Args..., nanobind::c_contig, nanobind::device::cpu>;

    Shared() = default;
    explicit Shared(Base&& array) : Base(std::move(array)) {}
};

namespace nanobind::detail {

template <class... Args>
struct type_caster<Shared<Args...>> {
    using Array = typename Shared<Args...>::Base;
    NB_TYPE_CASTER(Shared<Args...>, make_caster<Array>::Name)

    bool from_python(handle source, std::uint32_t flags, cleanup_list* cleanup) noexcept {
        make_caster<Array> any;
        if (!any.from_python(source, flags, cleanup)) return false;
        const auto address = reinterpret_cast<std::uintptr_t>(any.value.data());
        if (any.value.size() > 0 && address % alignof(typename Array::Scalar) != 0) return false;
        value = Shared<Args...>(std::move(any.value));
        return true;
    }
};

}  // namespace nanobind::detail
