#include "ggml_abi.hpp"

#include <dlfcn.h>

#include <cstring>

namespace specx::ggml {
namespace {

// llama-cpp-python opens its libraries for itself alone, so their symbols are not global. A lookup through the
// handle of the calling library also searches the libraries that one depends on.
void* open_caller(const void* caller) {
    Dl_info info;
    if (caller == nullptr || dladdr(caller, &info) == 0 || info.dli_fname == nullptr) return nullptr;
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
}

template <class Function>
bool find(void* handle, const char* name, Function* function) {
    void* symbol = handle != nullptr ? dlsym(handle, name) : nullptr;
    if (symbol == nullptr) symbol = dlsym(RTLD_DEFAULT, name);
    *function = reinterpret_cast<Function>(symbol);
    return symbol != nullptr;
}

constexpr struct {
    Op number;
    const char* name;
} kNames[] = {{kOpAdd, "ADD"},           {kOpMul, "MUL"},           {kOpRmsNorm, "RMS_NORM"},
              {kOpMulMat, "MUL_MAT"},    {kOpMulMatId, "MUL_MAT_ID"}, {kOpScale, "SCALE"},
              {kOpGetRows, "GET_ROWS"},  {kOpSetRows, "SET_ROWS"},  {kOpRope, "ROPE"},
              {kOpFlashAttnExt, "FLASH_ATTN_EXT"}, {kOpUnary, "UNARY"}, {kOpGlu, "GLU"}};

const char* find_in(void* handle, Functions* functions) {
    const char* (*version)() = nullptr;
    const char* (*op_name)(int32_t) = nullptr;
    size_t (*tensor_overhead)() = nullptr;
    bool found = find(handle, "ggml_version", &version) && find(handle, "ggml_op_name", &op_name) &&
                 find(handle, "ggml_tensor_overhead", &tensor_overhead) &&
                 find(handle, "ggml_backend_buffer_init", &functions->buffer_init) &&
                 find(handle, "ggml_backend_buft_is_host", &functions->buft_is_host) &&
                 find(handle, "ggml_backend_cpu_buffer_type", &functions->cpu_buffer_type) &&
                 find(handle, "ggml_nbytes", &functions->nbytes);
    if (!found) return "this process has no ggml, or one without the functions needed";
    if (std::strcmp(version(), kRelease) != 0) return "the ggml release is not the one this was written for";
    if (tensor_overhead() != kObjectHeader + sizeof(Tensor)) return "ggml's structures are not laid out as expected";
    for (const auto& op : kNames)
        if (std::strcmp(op_name(op.number), op.name) != 0) return "ggml's operations are not numbered as expected";
    return nullptr;
}

}  // namespace

const char* find_ggml(const void* caller, Functions* functions) {
    void* handle = open_caller(caller);
    const char* problem = find_in(handle, functions);
    if (handle != nullptr) dlclose(handle);  // the caller keeps its library loaded
    return problem;
}

}  // namespace specx::ggml
