// The ggml device: what this library offers to llama.cpp, and how a graph is computed.
//
// There are two devices, both of the ACCEL kind that works beside the CPU. "specx" computes; its buffer type is
// the CPU's own, so activations and results stay in ordinary memory and nothing is copied between the two.
// "specx-weights" exists for llama.cpp's model loader, which asks each ACCEL device in turn whether it wants a
// weight and then puts the weight into that device's buffer type. "specx" comes first and supports that buffer
// type too, so the scheduler never gives "specx-weights" anything to compute.
//
// ggml_backend_init() returns null, with a line on stderr, if this ggml is not the one ggml_abi.hpp describes;
// llama.cpp then keeps its own kernels.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

#include "ggml_abi.hpp"
#include "matmul.hpp"
#include "plan.hpp"
#include "support.hpp"
#include "weights.hpp"

#define SPECX_EXPORT extern "C" __attribute__((visibility("default")))

namespace specx {
namespace {

using ggml::Backend;
using ggml::BufferType;
using ggml::Device;
using ggml::Graph;
using ggml::Registry;
using ggml::Tensor;

bool wanted(const char* variable) {
    const char* value = std::getenv(variable);
    return value == nullptr || std::strcmp(value, "0") != 0;
}

struct Plugin {
    ggml::Functions ggml = {};
    Registry registry = {};
    Device compute = {}, weights = {};
    BufferType* weight_type = nullptr;
    std::atomic<bool> attention_on{wanted("SPECX_ATTENTION")};
    std::atomic<bool> weights_on{wanted("SPECX_WEIGHTS")};
    const bool layers_on = wanted("SPECX_LAYERS");  // where both others are on
    std::atomic<int64_t> pieces{0}, barriers{0};    // computed so far
};

// One for the process; never destroyed, since ggml uses the devices until the very end.
Plugin& plugin() {
    static Plugin* one = new Plugin;
    return *one;
}

// ---- What is supported

// Weights that are packed already have to be multiplied here, so the switch is only asked while loading.
bool supports_op(Device* device, const Tensor* op) {
    bool loading = device == &plugin().weights;
    bool weights_on = plugin().weights_on.load();
    if (op->op == ggml::kOpMulMat && supports_multiplication(op)) return !loading || weights_on;
    if (op->op == ggml::kOpMulMatId) return supports_experts(op) && (!loading || weights_on);
    if (op->op == ggml::kOpMulMat && supports_floats(op)) {
        // Those of 16 bits are taken into our own buffer, for its large pages. Others, small as a rule, stay.
        bool wide = op->src[0]->type == ggml::kTypeF32;
        return loading ? weights_on && !wide : weights_on || is_in_our_buffer(op->src[0]);
    }
    if (loading) return false;
    if (op->op == ggml::kOpFlashAttnExt) return plugin().attention_on.load() && supports_attention(op);
    if (is_nothing(op)) return true;
    return plugin().layers_on && weights_on && plugin().attention_on.load() && supports_rows(op);
}

bool supports_buft(Device*, BufferType* type) {
    return type == plugin().weight_type || plugin().ggml.buft_is_host(type);
}

// ---- Computing a graph

class Memory {
  public:
    bool reserve(size_t size) {
        if (size <= size_) return true;
        void* memory = nullptr;
        if (posix_memalign(&memory, kAlignment, size) != 0) return false;
        start_.reset(static_cast<char*>(memory));
        size_ = size;
        return true;
    }
    char* start() const { return start_.get(); }

  private:
    std::unique_ptr<char, void (*)(void*)> start_{nullptr, [](void* p) { std::free(p); }};
    size_t size_ = 0;
};

struct Computer {  // the context of a Backend
    int threads = 1;
    Abort abort;
    Plans plans;
    Memory scratch;
};

ggml::Status graph_compute(Backend* backend, Graph* graph) {
    auto* computer = static_cast<Computer*>(backend->context);
    try {
        const Plan& plan = computer->plans.of(graph, computer->threads);
        if (!computer->scratch.reserve(plan.scratch_bytes)) return ggml::kStatusAllocFailed;
        plugin().pieces += !plan.tasks.empty();
        plugin().barriers += plan.barriers;
        if (!run(plan, computer->scratch.start(), computer->abort)) return ggml::kStatusAborted;
    } catch (const std::exception&) {  // out of memory, or of threads
        return ggml::kStatusFailed;
    }
    return ggml::kStatusSuccess;
}

// ---- The interface

const char* device_name(Device* device) { return device == &plugin().weights ? "specx-weights" : "specx"; }
const char* device_description(Device*) { return "specx verification kernels"; }
ggml::DeviceType device_type(Device*) { return ggml::kDeviceAccel; }

void device_memory(Device*, size_t* free, size_t* total) { *free = *total = 0; }

void device_properties(Device* device, ggml::DeviceProperties* properties) {
    *properties = {};
    properties->name = device_name(device);
    properties->description = device_description(device);
    properties->type = device_type(device);
    properties->capabilities.mmap_support = true;
}

const char* backend_name(Backend* backend) { return device_name(backend->device); }

void backend_free(Backend* backend) {
    delete static_cast<Computer*>(backend->context);
    delete backend;
}

Backend* init_backend(Device* device, const char*) {
    static uint8_t guid[16] = {0x73, 0x70, 0x65, 0x63, 0x78, 0x2d, 0x67, 0x67,
                               0x6d, 0x6c, 0x2d, 0x64, 0x65, 0x76, 0x00, 0x01};
    auto* backend = new (std::nothrow) Backend{};
    auto* computer = new (std::nothrow) Computer;
    if (backend == nullptr || computer == nullptr) {
        delete backend;
        delete computer;
        return nullptr;
    }
    backend->guid = &guid;
    backend->iface.get_name = backend_name;
    backend->iface.free = backend_free;
    backend->iface.graph_compute = graph_compute;
    backend->device = device;
    backend->context = computer;
    return backend;
}

void set_n_threads(Backend* backend, int threads) { static_cast<Computer*>(backend->context)->threads = threads; }

void set_abort_callback(Backend* backend, bool (*callback)(void*), void* data) {
    static_cast<Computer*>(backend->context)->abort = {callback, data};
}

BufferType* buffer_type(Device* device) {
    return device == &plugin().weights ? plugin().weight_type : plugin().ggml.cpu_buffer_type();
}

const char* registry_name(Registry*) { return "specx"; }
size_t device_count(Registry*) { return 2; }
Device* get_device(Registry*, size_t index) { return index == 0 ? &plugin().compute : &plugin().weights; }

void* proc_address(Registry*, const char* name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(set_n_threads);
    if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) return reinterpret_cast<void*>(set_abort_callback);
    return nullptr;
}

void fill_in(Device* device, Registry* registry) {
    device->iface.get_name = device_name;
    device->iface.get_description = device_description;
    device->iface.get_memory = device_memory;
    device->iface.get_type = device_type;
    device->iface.get_props = device_properties;
    device->iface.init_backend = init_backend;
    device->iface.get_buffer_type = buffer_type;
    device->iface.supports_op = supports_op;
    device->iface.supports_buft = supports_buft;
    device->registry = registry;
}

}  // namespace
}  // namespace specx

// ggml's entry point.
SPECX_EXPORT specx::ggml::Registry* ggml_backend_init() {
    specx::Plugin& p = specx::plugin();
    if (p.weight_type != nullptr) return &p.registry;  // loaded a second time
    const char* problem = specx::ggml::find_ggml(__builtin_return_address(0), &p.ggml);
    if (problem != nullptr) {
        std::fprintf(stderr, "specx: using llama.cpp's own kernels: %s\n", problem);
        return nullptr;
    }
    specx::fill_in(&p.compute, &p.registry);
    specx::fill_in(&p.weights, &p.registry);
    p.weight_type = specx::make_weight_buffer_type(&p.weights, &p.ggml);
    p.registry.api_version = specx::ggml::kApiVersion;
    p.registry.iface.get_name = specx::registry_name;
    p.registry.iface.get_device_count = specx::device_count;
    p.registry.iface.get_device = specx::get_device;
    p.registry.iface.get_proc_address = specx::proc_address;
    return &p.registry;
}

// Switch the two features on or off: attention for graphs built from now on, weights for models loaded from
// now on. Both are on at first, unless the environment says SPECX_ATTENTION=0 or SPECX_WEIGHTS=0.
SPECX_EXPORT void specx_ggml_enable(int attention, int weights) {
    specx::plugin().attention_on = attention != 0;
    specx::plugin().weights_on = weights != 0;
}

// One line about what is on and on which instruction set; valid until the thread calls it again.
SPECX_EXPORT const char* specx_ggml_describe() {
    static thread_local char line[128];
    const specx::Plugin& p = specx::plugin();
    std::snprintf(line, sizeof line, "attention %s, weights %s, %s", p.attention_on.load() ? "on" : "off",
                  p.weights_on.load() ? "on" : "off", specx::isa_name(specx::best_isa()));
    return line;
}

// How many pieces of graphs were computed in this process so far, and how many barriers are between their tasks.
SPECX_EXPORT void specx_ggml_counts(int64_t* pieces, int64_t* barriers) {
    *pieces = specx::plugin().pieces.load();
    *barriers = specx::plugin().barriers.load();
}

// See `begin_packing`: the file with the packed weights of the model that is loaded until specx_ggml_end_packing.
SPECX_EXPORT int specx_ggml_begin_packing(int descriptor, const char* key, int writing) {
    try {
        return specx::begin_packing(descriptor, key, writing != 0);
    } catch (const std::exception&) {  // out of memory
        return 0;
    }
}

// Bytes that were packed and found since, microseconds of CPU time, whether the file is complete, and bytes of it
// on large pages.
SPECX_EXPORT void specx_ggml_end_packing(int64_t* numbers) {
    const specx::Packing packing = specx::end_packing();
    const int64_t all[] = {packing.packed, packing.found, packing.microseconds, packing.complete,
                           packing.large_pages};
    std::memcpy(numbers, all, sizeof all);
}
