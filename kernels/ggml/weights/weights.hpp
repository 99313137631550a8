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

// What became of the weights of one model while it was loaded.
struct Packing {
    int64_t packed = 0, found = 0;  // bytes: packed now, and found in the file
    int64_t microseconds = 0;       // CPU time of all threads for that, or for writing it
    bool complete = false;          // the file holds all of them now
    int64_t large_pages = 0;        // bytes of it that are on large pages, if it was written
};

// The weights of the model that is loaded between these calls are those of the file `descriptor`, if it holds weights
// of `key`, kKeySize bytes; or they are written there, if it is `writing`. Whether that can be. None with -1.
bool begin_packing(int descriptor, const char* key, bool writing);
Packing end_packing();

}  // namespace specx
