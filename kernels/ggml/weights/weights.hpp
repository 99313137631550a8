// The buffer type that holds weights in the packed layout of the multiplication kernels.
#pragma once

#include <cstdint>

#include "ggml_abi.hpp"

namespace specx {

// The one buffer type, made known to ggml as belonging to `device`. `functions` must outlive it.
ggml::BufferType* make_weight_buffer_type(ggml::Device* device, const ggml::Functions* functions);

// Whether `tensor` is in that buffer type.
bool is_in_our_buffer(const ggml::Tensor* tensor);

// Whether `tensor` is a whole tensor in that buffer type whose matrices are packed.
bool is_packed(const ggml::Tensor* tensor);

// The packed matrix (expert) `index` of such a tensor.
const void* packed_matrix(const ggml::Tensor* tensor, int64_t index);

}  // namespace specx
