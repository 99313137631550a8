// Some rows of a matrix in one of ggml's types times vectors of floats, by ggml's own arithmetic: the rows of a
// head for the tokens of a context, which lie far apart.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bound_drafts.hpp"

namespace nb = nanobind;

namespace {

using Quantize = void (*)(const float* values, void* quantized, int64_t n);
using Dot = void (*)(int n, float* sum, size_t, const void* row, size_t, const void* quantized, size_t, int rows);

using Table = Shared<const uint8_t, nb::ndim<2>>;
using Vectors = Shared<const float, nb::ndim<2>>;
using Sums = Shared<float, nb::ndim<2>>;
using Block = std::pair<size_t, size_t>;  // of a type: values, bytes

constexpr size_t AHEAD = 8;  // rows that are fetched before they are needed
constexpr size_t LINE = 64;  // bytes

void fetch(const uint8_t* row, size_t bytes) {
    for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch(row + at);
}

// Bytes of `width` values.
size_t bytes_of(size_t width, const Block& block) {
    require(block.first > 0 && width % block.first == 0, "the vectors are no whole blocks");
    return width / block.first * block.second;
}

void dot_rows(const Table& table, const Ints& ids, const Vectors& vectors, const Sums& sums, uintptr_t dot,
              uintptr_t quantize, const Block& row_block, const Block& vector_block) {
    const size_t rows = ids.shape(0), count = vectors.shape(0), width = vectors.shape(1);
    const size_t row_bytes = bytes_of(width, row_block), quantized_bytes = bytes_of(width, vector_block);
    require(table.shape(1) == row_bytes, "a row has other bytes than a vector has values");
    require(sums.shape(0) == count && sums.shape(1) == rows, "sums are (vectors, ids)");
    for (size_t i = 0; i < rows; ++i)
        require(ids(i) >= 0 && size_t(ids(i)) < table.shape(0), "there is no such row");
    std::vector<uint8_t> quantized(count * quantized_bytes);
    for (size_t j = 0; j < count; ++j) {
        reinterpret_cast<Quantize>(quantize)(&vectors(j, 0), &quantized[j * quantized_bytes], int64_t(width));
    }
    for (size_t i = 0; i < rows; ++i) {
        if (i + AHEAD < rows) fetch(&table(ids(i + AHEAD), 0), row_bytes);
        for (size_t j = 0; j < count; ++j) {
            reinterpret_cast<Dot>(dot)(int(width), &sums(j, i), 0, &table(ids(i), 0), 0,
                                       &quantized[j * quantized_bytes], 0, 1);
        }
    }
}

}  // namespace

void bind_dot_rows(nb::module_& m) {
    using namespace nb::literals;
    m.def("dot_rows", &dot_rows, "table"_a, "ids"_a, "vectors"_a, "sums"_a, "dot"_a, "quantize"_a,
          "row_block"_a, "vector_block"_a);
}
