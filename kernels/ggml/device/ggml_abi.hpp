// The part of ggml's binary interface that a device must know, in our own declarations.
//
// ggml loads devices from shared libraries, but its interface structs are in headers that no package
// installs. What follows declares them as ggml 0.25.3 lays them out (backend interface version 2); only the
// members used here have their real types, the others are pointers of the same size. `find_ggml` checks
// the release at run time, and a test checks sizes and offsets against the public headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace specx::ggml {

constexpr int kApiVersion = 2;
constexpr char kRelease[] = "0.25.3";
constexpr size_t kObjectHeader = 32;  // what ggml_tensor_overhead() adds to a tensor's size

enum Op : int32_t {
    kOpNone = 0,
    kOpAdd = 2,
    kOpMul = 7,
    kOpRmsNorm = 25,
    kOpMulMat = 29,
    kOpMulMatId = 30,
    kOpScale = 32,
    kOpReshape = 36,
    kOpView = 37,
    kOpPermute = 38,
    kOpTranspose = 39,
    kOpGetRows = 40,
    kOpSetRows = 42,
    kOpRope = 48,
    kOpFlashAttnExt = 74,
    kOpUnary = 91,
    kOpGlu = 100,
};

enum Unary : int32_t { kUnaryGelu = 8, kUnarySilu = 10 };
enum Glu : int32_t { kGluGelu = 1, kGluSilu = 2 };
enum Rope : int32_t { kRopeNeighbours = 0, kRopeHalves = 2 };

enum Type : int32_t { kTypeF32 = 0, kTypeF16 = 1, kTypeQ8_0 = 8, kTypeI32 = 26, kTypeI64 = 27, kTypeBF16 = 30 };
enum Status : int32_t { kStatusAllocFailed = -2, kStatusFailed = -1, kStatusSuccess = 0, kStatusAborted = 1 };
enum DeviceType : int32_t { kDeviceCpu = 0, kDeviceAccel = 3 };

constexpr int32_t kFlagCompute = 16;   // ggml_tensor::flags: the node has to be computed
constexpr int32_t kUsageWeights = 1;   // Buffer::usage
constexpr int32_t kHintHadamard = 1;  // op_params[1] of a MUL_MAT: the first source is a Hadamard matrix

using Pointer = void (*)();  // an interface function that is not used here

struct Buffer;
struct BufferType;
struct Backend;
struct Device;
struct Registry;

struct Tensor {
    Type type;
    Buffer* buffer;
    int64_t ne[4];  // elements in each dimension
    size_t nb[4];   // strides in bytes
    Op op;
    int32_t op_params[16];
    int32_t flags;
    Tensor* src[10];
    Tensor* view_src;
    size_t view_offs;
    void* data;
    char name[64];
    void* extra;
    char padding[8];
};
static_assert(sizeof(Tensor) == 336, "ggml_tensor");

struct Graph {  // ggml_cgraph
    int size;
    int n_nodes;
    int n_leafs;
    Tensor** nodes;
    void* others[4];  // gradients, leaves, counts of uses
    size_t set_size;
    void* set[2];
    int32_t order;
    uint64_t uid;  // the same for the same graph in the same memory; 0: not known
};

struct BufferTypeInterface {
    const char* (*get_name)(BufferType*);
    Buffer* (*alloc_buffer)(BufferType*, size_t size);
    size_t (*get_alignment)(BufferType*);
    Pointer get_max_size;
    size_t (*get_alloc_size)(BufferType*, const Tensor*);
    bool (*is_host)(BufferType*);
};

struct BufferType {
    BufferTypeInterface iface;
    Device* device;
    void* context;
};

struct BufferInterface {
    void (*free_buffer)(Buffer*);
    void* (*get_base)(Buffer*);
    Pointer init_tensor;
    void (*memset_tensor)(Buffer*, Tensor*, uint8_t value, size_t offset, size_t size);
    void (*set_tensor)(Buffer*, Tensor*, const void* data, size_t offset, size_t size);
    void (*get_tensor)(Buffer*, const Tensor*, void* data, size_t offset, size_t size);
    Pointer set_tensor_2d;
    Pointer get_tensor_2d;
    Pointer cpy_tensor;
    void (*clear)(Buffer*, uint8_t value);
    Pointer reset;
};

struct Buffer {
    BufferInterface iface;
    BufferType* type;
    void* context;
    size_t size;
    int32_t usage;
};

struct BackendInterface {
    const char* (*get_name)(Backend*);
    void (*free)(Backend*);
    Pointer async_and_plans[10];  // asynchronous copies, synchronize, graph plans
    Status (*graph_compute)(Backend*, Graph*);
    Pointer event_record;
    Pointer event_wait;
    Pointer graph_optimize;
};

struct Backend {
    uint8_t (*guid)[16];
    BackendInterface iface;
    Device* device;
    void* context;
};

struct DeviceCapabilities {
    bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
};

struct DeviceProperties {
    const char* name;
    const char* description;
    size_t memory_free;
    size_t memory_total;
    DeviceType type;
    const char* device_id;
    DeviceCapabilities capabilities;
};

struct DeviceInterface {
    const char* (*get_name)(Device*);
    const char* (*get_description)(Device*);
    void (*get_memory)(Device*, size_t* free, size_t* total);
    DeviceType (*get_type)(Device*);
    void (*get_props)(Device*, DeviceProperties*);
    Backend* (*init_backend)(Device*, const char* params);
    BufferType* (*get_buffer_type)(Device*);
    Pointer get_host_buffer_type;
    Pointer buffer_from_host_ptr;
    bool (*supports_op)(Device*, const Tensor* op);
    bool (*supports_buft)(Device*, BufferType*);
    Pointer offload_op;
    Pointer event_new;
    Pointer event_free;
    Pointer event_synchronize;
};

struct Device {
    DeviceInterface iface;
    Registry* registry;
    void* context;
};

struct RegistryInterface {
    const char* (*get_name)(Registry*);
    size_t (*get_device_count)(Registry*);
    Device* (*get_device)(Registry*, size_t index);
    void* (*get_proc_address)(Registry*, const char* name);
};

struct Registry {
    int api_version;
    RegistryInterface iface;
    void* context;
};

// The functions of ggml that are called from here. They are looked up at load time, so that this library
// needs nothing of llama.cpp to be built and loads beside any copy of it.
struct Functions {
    Buffer* (*buffer_init)(BufferType*, BufferInterface, void* context, size_t size);
    bool (*buft_is_host)(BufferType*);
    BufferType* (*cpu_buffer_type)();
    size_t (*nbytes)(const Tensor*);
};

// Look the functions up in the ggml that `caller` (a code address) belongs to, or else anywhere in the
// process, and check its release. Returns null, or why this ggml cannot be used.
const char* find_ggml(const void* caller, Functions* functions);

}  // namespace specx::ggml
