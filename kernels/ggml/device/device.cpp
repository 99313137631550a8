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
#include <vector>

#include "attention.hpp"
#include "experts.hpp"
#include "float_matmul.hpp"
#include "ggml_abi.hpp"
#include "matmul.hpp"
#include "threads.hpp"
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
};

// One for the process; never destroyed, since ggml uses the devices until the very end.
Plugin& plugin() {
    static Plugin* one = new Plugin;
    return *one;
}

// ---- What is supported

Attention attention_of(const Tensor* op) {
    const Tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    auto stride = [](const Tensor* t, int i) { return static_cast<int64_t>(t->nb[i]); };
    Attention a = {};
    a.q = q->data, a.k = k->data, a.v = v->data, a.dst = op->data;
    a.type_k = k->type, a.type_v = v->type;
    a.k_size = k->ne[0], a.v_size = v->ne[0];
    a.rows = q->ne[1], a.heads = q->ne[2], a.kv_heads = k->ne[2], a.cells = k->ne[1], a.streams = q->ne[3];
    a.q_row = stride(q, 1), a.q_head = stride(q, 2), a.q_stream = stride(q, 3);
    a.k_cell = stride(k, 1), a.k_head = stride(k, 2), a.k_stream = stride(k, 3);
    a.v_cell = stride(v, 1), a.v_head = stride(v, 2), a.v_stream = stride(v, 3);
    a.dst_head = stride(op, 1), a.dst_row = stride(op, 2), a.dst_stream = stride(op, 3);
    if (mask != nullptr) {
        a.mask = mask->data;
        a.mask_heads = mask->ne[2], a.mask_streams = mask->ne[3];
        a.mask_row = stride(mask, 1), a.mask_head = stride(mask, 2), a.mask_stream = stride(mask, 3);
    }
    if (sinks != nullptr) a.sinks = static_cast<const float*>(sinks->data);
    std::memcpy(&a.scale, op->op_params, sizeof(float));
    std::memcpy(&a.max_bias, op->op_params + 1, sizeof(float));
    std::memcpy(&a.softcap, op->op_params + 2, sizeof(float));
    return a;
}

bool supports_attention(const Tensor* op) {
    const Tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    bool rows_contiguous = q->nb[0] == sizeof(float) && k->nb[0] == (k->type == ggml::kTypeF16 ? 2u : 34u) &&
                           v->nb[0] == (v->type == ggml::kTypeF16 ? 2u : 34u) && op->nb[0] == sizeof(float);
    bool shapes = q->ne[0] == k->ne[0] && k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] &&
                  q->ne[3] == k->ne[3];
    bool masked = mask == nullptr || (mask->type == ggml::kTypeF16 && mask->nb[0] == 2 && mask->ne[2] > 0 &&
                                      mask->ne[3] > 0 && mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1]);
    return q->type == ggml::kTypeF32 && op->type == ggml::kTypeF32 && rows_contiguous && shapes && masked &&
           attention_supported(attention_of(op));
}

// Whether all rows are equally far apart, so that the three outer dimensions are one.
bool evenly_strided(const Tensor* t) { return t->nb[2] == t->nb[1] * t->ne[1] && t->nb[3] == t->nb[2] * t->ne[2]; }

bool has_float_rows(const Tensor* t) { return t->type == ggml::kTypeF32 && t->nb[0] == sizeof(float); }

bool supports_multiplication(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    return is_packed(w) && w->ne[2] == 1 && w->ne[3] == 1 && has_float_rows(x) && has_float_rows(op) &&
           op->op_params[1] != ggml::kHintHadamard;
}

bool is_ours(const Tensor* w) { return w->buffer->type == plugin().weight_type; }

// A matrix of floats among the weights, wherever it is kept.
bool supports_floats(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    return w->buffer != nullptr && (w->buffer->usage == ggml::kUsageWeights || is_ours(w)) &&
           w->view_src == nullptr && float_matmul_supported(w->type) && w->nb[0] == (w->type == ggml::kTypeF32 ? 4u : 2u) && w->ne[2] == 1 &&
           w->ne[3] == 1 && has_float_rows(x) && evenly_strided(x) && has_float_rows(op) && evenly_strided(op) && op->op_params[1] != ggml::kHintHadamard;
}

Experts experts_of(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1], *ids = op->src[2];
    Experts e = {};
    e.type = w->type, e.packed = packed_matrix(w, 0);
    e.k = w->ne[0], e.rows = w->ne[1], e.count = w->ne[2];
    e.tokens = ids->ne[1], e.slots = ids->ne[0];
    e.x = x->data, e.x_slots = x->ne[1], e.x_slot = x->nb[1], e.x_token = x->nb[2];
    e.ids = ids->data, e.ids_slot = ids->nb[0], e.ids_token = ids->nb[1];
    e.out = op->data, e.out_slot = op->nb[1], e.out_token = op->nb[2];
    return e;
}

bool supports_experts(const Tensor* op) {
    const Tensor *w = op->src[0], *ids = op->src[2];
    return is_packed(w) && w->ne[3] == 1 && has_float_rows(op->src[1]) && has_float_rows(op) &&
           ids->type == ggml::kTypeI32;
}

bool is_nothing(const Tensor* op) {
    switch (op->op) {
        case ggml::kOpNone:
        case ggml::kOpReshape:
        case ggml::kOpView:
        case ggml::kOpPermute:
        case ggml::kOpTranspose: return true;
        default: return false;
    }
}

// Weights that are packed already have to be multiplied here, so the switch is only asked while loading.
bool supports_op(Device* device, const Tensor* op) {
    bool loading = device == &plugin().weights;
    bool weights_on = plugin().weights_on.load();
    if (op->op == ggml::kOpMulMat && supports_multiplication(op)) return !loading || weights_on;
    if (op->op == ggml::kOpMulMatId) return supports_experts(op) && (!loading || weights_on);
    if (op->op == ggml::kOpMulMat && supports_floats(op)) {
        // Those of 16 bits are taken into our own buffer, for its large pages. Others, small as a rule, stay.
        bool wide = op->src[0]->type == ggml::kTypeF32;
        return loading ? weights_on && !wide : weights_on || is_ours(op->src[0]);
    }
    if (loading) return false;
    if (op->op == ggml::kOpFlashAttnExt) return plugin().attention_on.load() && supports_attention(op);
    return is_nothing(op);
}

bool supports_buft(Device*, BufferType* type) {
    return type == plugin().weight_type || plugin().ggml.buft_is_host(type);
}

// ---- Computing a graph

struct Step {
    const Tensor* op;
    bool quantize;  // the activations of a multiplication; false if the step before has the same
    bool wait;      // whether the next step needs what this one writes
};

struct Computer {  // the context of a Backend
    int threads = 1;
    std::vector<Step> steps;
    std::unique_ptr<char, void (*)(void*)> scratch{nullptr, [](void* p) { std::free(p); }};
    size_t scratch_size = 0;

    bool reserve(size_t size) {
        if (size <= scratch_size) return true;
        void* memory = nullptr;
        if (posix_memalign(&memory, kAlignment, size) != 0) return false;
        scratch.reset(static_cast<char*>(memory));
        scratch_size = size;
        return true;
    }
};

// Rows of the activations that are multiplied at once: all of them, unless their strides differ.
int64_t tokens_of(const Tensor* op) {
    const Tensor* x = op->src[1];
    return evenly_strided(x) && evenly_strided(op) ? x->ne[1] * x->ne[2] * x->ne[3] : x->ne[1];
}

void multiply_step(const Computer& computer, const Step& step, Team* team, int member, int size) {
    const Tensor *op = step.op, *w = op->src[0], *x = op->src[1];
    void* scratch = computer.scratch.get();
    int64_t tokens = tokens_of(op), slices = x->ne[1] * x->ne[2] * x->ne[3] / tokens;
    for (int64_t slice = 0; slice < slices; ++slice) {
        int64_t i2 = slice % x->ne[2], i3 = slice / x->ne[2];
        const char* rows = static_cast<const char*>(x->data) + i2 * x->nb[2] + i3 * x->nb[3];
        char* out = static_cast<char*>(op->data) + i2 * op->nb[2] + i3 * op->nb[3];
        if (slice > 0) team_barrier(team);  // the scratch memory is still being read
        if (step.quantize || slices > 1) {
            quantize_rows(w->type, w->ne[0], tokens, reinterpret_cast<const float*>(rows), x->nb[1], scratch,
                          member, size);
            team_barrier(team);
        }
        multiply(w->type, w->ne[0], w->ne[1], tokens, packed_matrix(w, 0), scratch, reinterpret_cast<float*>(out),
                 op->nb[1], member, size);
    }
}

bool has_float_weights(const Tensor* op) {
    return op->op == ggml::kOpMulMat && float_matmul_supported(op->src[0]->type);
}

void multiply_floats_step(const Tensor* op, int member, int size) {
    const Tensor *w = op->src[0], *x = op->src[1];
    multiply_floats(best_isa(), w->type, w->ne[0], w->ne[1], tokens_of(op), w->data, w->nb[1], x->data, x->nb[1], op->data,
                    op->nb[1], member, size);
}

void run_steps(void* argument, Team* team, int member, int size) {
    const Computer& computer = *static_cast<const Computer*>(argument);
    for (const Step& step : computer.steps) {
        if (has_float_weights(step.op)) {
            multiply_floats_step(step.op, member, size);
        } else if (step.op->op == ggml::kOpMulMat) {
            multiply_step(computer, step, team, member, size);
        } else if (step.op->op == ggml::kOpMulMatId) {
            multiply_experts(experts_of(step.op), step.quantize, computer.scratch.get(), team, member, size);
        } else {
            attention(best_isa(), attention_of(step.op), computer.scratch.get(), team, member, size);
        }
        if (step.wait) team_barrier(team);
    }
}

// Multiplications with experts share the order of their tokens, too. At most two in a row: see multiply_experts().
bool shares_experts(const Step& before, const Tensor* op) {
    const Tensor *w = op->src[0], *other = before.op->src[0];
    return before.op->op == ggml::kOpMulMatId && before.quantize && before.op->src[1] == op->src[1] &&
           before.op->src[2] == op->src[2] && other->type == w->type && other->ne[1] == w->ne[1] &&
           other->ne[2] == w->ne[2];
}

// Multiplications of the same activations (Q, K and V; gate and up) quantize them once and need no barrier
// between them.
bool shares_activations(const Step& before, const Tensor* op) {
    if (op->op == ggml::kOpMulMatId) return shares_experts(before, op);
    return before.op->op == ggml::kOpMulMat && op->op == ggml::kOpMulMat && before.op->src[1] == op->src[1] &&
           before.op->src[0]->type == op->src[0]->type && evenly_strided(op->src[1]) && evenly_strided(op) &&
           evenly_strided(before.op);
}

// As after a prompt none of whose tokens' logits are wanted.
bool is_empty(const Tensor* op) { return op->ne[0] == 0 || op->ne[1] == 0 || op->ne[2] == 0 || op->ne[3] == 0; }

size_t scratch_size_of(const Tensor* op, int threads) {
    if (has_float_weights(op)) return 0;
    switch (op->op) {
        case ggml::kOpMulMat: return scratch_size(op->src[0]->type, op->src[0]->ne[0], tokens_of(op));
        case ggml::kOpMulMatId: return experts_scratch_size(experts_of(op), threads);
        default: return attention_scratch_size(attention_of(op), threads);
    }
}

size_t plan_steps(Computer* computer, const Graph* graph) {
    size_t scratch = 0;
    computer->steps.clear();
    for (int i = 0; i < graph->n_nodes; ++i) {
        const Tensor* op = graph->nodes[i];
        if (is_nothing(op) || is_empty(op) || (op->flags & ggml::kFlagCompute) == 0) continue;
        bool shares = !computer->steps.empty() && shares_activations(computer->steps.back(), op);
        if (shares) computer->steps.back().wait = false;
        computer->steps.push_back({op, !shares, true});
        size_t size = scratch_size_of(op, computer->threads);
        if (size > scratch) scratch = size;
    }
    if (!computer->steps.empty()) computer->steps.back().wait = false;  // the end of the run waits for all
    return scratch;
}

ggml::Status graph_compute(Backend* backend, Graph* graph) {
    auto* computer = static_cast<Computer*>(backend->context);
    try {
        if (!computer->reserve(plan_steps(computer, graph))) return ggml::kStatusAllocFailed;
        if (!computer->steps.empty()) team_run(computer->threads, run_steps, computer);
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

BufferType* buffer_type(Device* device) {
    return device == &plugin().weights ? plugin().weight_type : plugin().ggml.cpu_buffer_type();
}

const char* registry_name(Registry*) { return "specx"; }
size_t device_count(Registry*) { return 2; }
Device* get_device(Registry*, size_t index) { return index == 0 ? &plugin().compute : &plugin().weights; }

void* proc_address(Registry*, const char* name) {
    bool found = std::strcmp(name, "ggml_backend_set_n_threads") == 0;
    return found ? reinterpret_cast<void*>(set_n_threads) : nullptr;
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
