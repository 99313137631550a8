// Which operations of a graph are computed here, and what they are in the kernels' terms.
#pragma once

#include <cstdint>

#include "attention.hpp"
#include "experts.hpp"
#include "ggml_abi.hpp"
#include "rows.hpp"

namespace specx {

// A tensor of floats as `count` rows of `columns` elements that lie side by side.
struct Rows {
    char* start = nullptr;
    int64_t count = 0, columns = 0;
    size_t stride = 0;  // bytes from row to row
    size_t element = sizeof(float);
};

// `tensor` with its first `dims` dimensions as columns, if they lie side by side and the others are evenly spaced.
bool as_rows(const ggml::Tensor* tensor, int dims, Rows* rows);

// What each takes, apart from switches. Not more than what is said there of shapes and types is looked at in `op`.
bool supports_attention(const ggml::Tensor* op);       // FLASH_ATTN_EXT
bool supports_multiplication(const ggml::Tensor* op);  // MUL_MAT of packed weights
bool supports_floats(const ggml::Tensor* op);          // MUL_MAT of floats, wherever they are kept
bool supports_experts(const ggml::Tensor* op);         // MUL_MAT_ID of packed weights
bool supports_rows(const ggml::Tensor* op);            // norms, activations, sums, ...: see rows.hpp
bool is_nothing(const ggml::Tensor* op);               // views and the like

Attention attention_of(const ggml::Tensor* op);
Experts experts_of(const ggml::Tensor* op);
Rotation rotation_of(const ggml::Tensor* op);
Activation activation_of(const ggml::Tensor* op);  // UNARY or GLU

// The rows that an operation goes over: how many of the first dimensions are columns, 0 if its operands do not agree.
// Of several possibilities the one with `count` rows, if there is one.
int columns_of(const ggml::Tensor* op, int64_t count);

// Whether `b` is a row that is the same for all rows: its elements are repeated after `b->ne[0]` columns.
bool is_one_row(const ggml::Tensor* b);

bool has_float_weights(const ggml::Tensor* op);

// Whether all rows are equally far apart, so that the three outer dimensions are one.
bool evenly_strided(const ggml::Tensor* tensor);

// As after a prompt none of whose tokens' logits are wanted.
bool is_empty(const ggml::Tensor* op);

}  // namespace specx
