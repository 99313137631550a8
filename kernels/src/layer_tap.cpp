// The inputs of some layers of a model, copied out while llama.cpp computes it.
//
// llama.cpp reports every value of its graph to one callback: some nine hundred a call, so it is a function of C.
// What a layer gives to the next one is named "l_out-" and its number there.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "arrays.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr char kOutput[] = "l_out-";
constexpr size_t kPrefix = sizeof(kOutput) - 1;

class LayerTap {
  public:
    using Rows = Shared<float, nb::ndim<2>>;

    // The functions are ggml_get_name, ggml_nbytes and ggml_backend_tensor_get.
    LayerTap(uintptr_t name, uintptr_t nbytes, uintptr_t get)
        : name_(reinterpret_cast<Name>(name)),
          nbytes_(reinterpret_cast<Bytes>(nbytes)),
          get_(reinterpret_cast<Get>(get)) {}

    void watch(std::vector<int32_t> layers) {
        layers_ = std::move(layers);
        forget();
    }

    void begin(Rows rows) {
        if (layers_.empty() || rows.shape(1) == 0 || rows.shape(1) % layers_.size() != 0) {
            throw nb::value_error("the columns are those of all watched layers");
        }
        capacity_ = rows.shape(0);
        width_ = rows.shape(1) / layers_.size();
        rows_ = std::move(rows);
        out_ = rows_.data();
        arrived_.assign(layers_.size(), 0);
        overflown_ = false;
    }

    // Rows that came of every layer since `begin`; -1 if they do not fit what was to take them.
    int64_t end() {
        forget();
        if (overflown_ || arrived_.empty()) return -1;
        const auto [least, most] = std::minmax_element(arrived_.begin(), arrived_.end());
        return *least == *most ? int64_t(*least) : -1;
    }

    static bool on_value(void* tensor, bool ask, void* self) {
        auto* tap = static_cast<LayerTap*>(self);
        const int index = tap->out_ == nullptr ? -1 : tap->index_of(tensor);
        if (!ask && index >= 0) tap->take(tensor, size_t(index));
        return index >= 0 || !ask;
    }

    uintptr_t callback() const { return reinterpret_cast<uintptr_t>(&on_value); }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(this); }

  private:
    using Name = const char* (*)(const void*);
    using Bytes = size_t (*)(const void*);
    using Get = void (*)(const void*, void*, size_t, size_t);

    void forget() {
        out_ = nullptr;
        rows_ = Rows();
    }

    // Which of the watched layers takes the value as its input; -1 for none.
    int index_of(const void* tensor) const {
        const char* name = name_(tensor);
        if (std::strncmp(name, kOutput, kPrefix) != 0) return -1;
        char* rest = nullptr;
        const long layer = std::strtol(name + kPrefix, &rest, 10);
        if (rest == name + kPrefix || *rest != '\0') return -1;
        const auto found = std::find(layers_.begin(), layers_.end(), int32_t(layer + 1));
        return found == layers_.end() ? -1 : int(found - layers_.begin());
    }

    void take(const void* tensor, size_t index) {
        const size_t nbytes = nbytes_(tensor), row = width_ * sizeof(float);
        const size_t rows = nbytes / row, first = arrived_[index];
        if (nbytes % row != 0 || rows > capacity_ - first) {
            overflown_ = true;
            return;
        }
        arrived_[index] += rows;
        piece_.resize(rows * width_);
        get_(tensor, piece_.data(), 0, nbytes);
        float* to = out_ + (first * layers_.size() + index) * width_;
        for (size_t i = 0; i < rows; ++i, to += layers_.size() * width_) {
            std::memcpy(to, piece_.data() + i * width_, row);
        }
    }

    Name name_;
    Bytes nbytes_;
    Get get_;
    std::vector<int32_t> layers_;
    Rows rows_;             // held while they are written to
    float* out_ = nullptr;  // null while nothing is wanted
    size_t capacity_ = 0, width_ = 0;
    std::vector<size_t> arrived_;  // rows of each layer
    std::vector<float> piece_;
    bool overflown_ = false;
};

}  // namespace

void bind_layer_tap(nb::module_& m) {
    nb::class_<LayerTap>(m, "LayerTap")
        .def(nb::init<uintptr_t, uintptr_t, uintptr_t>(), "name"_a, "nbytes"_a, "get"_a)
        .def("watch", &LayerTap::watch, "layers"_a)
        .def("begin", &LayerTap::begin, "rows"_a.noconvert())
        .def("end", &LayerTap::end)
        .def_prop_ro("callback", &LayerTap::callback)
        .def_prop_ro("address", &LayerTap::address);
}
