// A layer of a model as a graph, planned and computed by teams of one to four: the same bits in any team, and for each
// token alone. Memory is used again as ggml's allocator does it, results in place included. Under the thread sanitizer
// a barrier that is missing is a race.
#include "plan.hpp"

#include <cmath>
#include <list>
#include <vector>

#include "check.hpp"
#include "formats.hpp"
#include "weights.hpp"

namespace {

using namespace specx;
using ggml::Tensor;

constexpr int64_t kWidth = 96, kHead = 32, kHeads = 3, kKvHeads = 1, kHidden = 160, kCells = 128;
constexpr int kQ4_0Type = 2;

ggml::Buffer packed_buffer() {
    static ggml::Functions none = {};
    ggml::Buffer buffer = {};
    buffer.type = make_weight_buffer_type(nullptr, &none);
    buffer.usage = ggml::kUsageWeights;
    return buffer;
}

// A graph under construction, and its memory.
class Builder {
  protected:
    Tensor* tensor(ggml::Type type, int64_t n0, int64_t n1 = 1, int64_t n2 = 1, void* data = nullptr) {
        tensors_.push_back({});
        Tensor* t = &tensors_.back();
        t->type = type;
        const size_t element = type == ggml::kTypeF16 ? 2 : type == ggml::kTypeI64 ? 8 : 4;
        const int64_t ne[4] = {n0, n1, n2, 1};
        size_t step = element;
        for (int i = 0; i < 4; ++i) t->ne[i] = ne[i], t->nb[i] = step, step *= ne[i];
        if (data == nullptr) memory_.emplace_back(step), std::memset(memory_.back().data(), 0, step);
        t->data = data == nullptr ? memory_.back().data() : data;
        return t;
    }
    Tensor* input(int64_t n) {
        Tensor* t = tensor(ggml::kTypeF32, n);
        for (int64_t i = 0; i < n; ++i) static_cast<float*>(t->data)[i] = random_float();
        return t;
    }
    // Random weights of n rows of k, packed.
    Tensor* weights(int64_t k, int64_t n) {
        memory_.emplace_back(packed_size(kQ4_0Type, k, n));
        Buffer plain(static_cast<size_t>(n * k / 32) * kQ4_0.source_bytes);
        for (size_t i = 0; i < plain.size(); ++i) plain.data()[i] = static_cast<uint8_t>(random_bits() >> 24);
        for (size_t i = 1; i < plain.size(); i += kQ4_0.source_bytes) plain.data()[i] = 0x24;
        pack(kQ4_0Type, k, n, plain.data(), memory_.back().data(), 0, n);
        Tensor* t = tensor(ggml::Type(kQ4_0Type), k, n, 1, memory_.back().data());
        t->buffer = &buffer_;
        return t;
    }
    // `data`: an operand whose memory is used again.
    Tensor* node(ggml::Op op, Tensor* a, Tensor* b, int64_t n0, int64_t n1, int64_t n2, void* data = nullptr) {
        Tensor* t = tensor(ggml::kTypeF32, n0, n1, n2, data);
        t->op = op, t->src[0] = a, t->src[1] = b, t->flags = ggml::kFlagCompute;
        nodes_.push_back(t);
        return t;
    }
    Tensor* view(Tensor* of, int64_t n0, int64_t n1, int64_t n2) {
        Tensor* t = tensor(of->type, n0, n1, n2, of->data);
        t->view_src = of;
        return t;
    }
    Tensor* product(Tensor* w, Tensor* x, void* data = nullptr) {
        return node(ggml::kOpMulMat, w, x, w->ne[1], x->ne[1], 1, data);
    }
    Tensor* norm(Tensor* x, void* data = nullptr, void* weighted = nullptr) {
        Tensor* t = node(ggml::kOpRmsNorm, x, nullptr, x->ne[0], x->ne[1], x->ne[2], data);
        set(t, 0, 1e-5f);
        if (weighted == nullptr) weighted = t->data;
        return node(ggml::kOpMul, t, input(x->ne[0]), x->ne[0], x->ne[1], x->ne[2], weighted);
    }
    static void set(Tensor* t, int i, float value) { std::memcpy(t->op_params + i, &value, sizeof value); }

    // Whether it was computed to the end.
    bool compute(int threads, const Abort& abort = {}) {
        ggml::Graph graph = {};
        graph.n_nodes = static_cast<int>(nodes_.size()), graph.nodes = nodes_.data();
        const Plan plan = make_plan(&graph, threads);
        Buffer scratch(plan.scratch_bytes);
        return run(plan, reinterpret_cast<char*>(scratch.data()), abort);
    }

    ggml::Buffer buffer_ = packed_buffer();
    std::list<Tensor> tensors_;
    std::list<Buffer> memory_;
    std::vector<Tensor*> nodes_;
};

class Layer : Builder {
  public:
    explicit Layer(int64_t tokens) : tokens_(tokens) { build(); }

    // Compute it, with `first` as the first of the tokens in `input`; the results of all tokens.
    std::vector<float> run_with(int threads, const std::vector<float>& input, int64_t first) {
        std::memcpy(x_->data, input.data() + first * kWidth, tokens_ * kWidth * sizeof(float));
        for (int64_t i = 0; i < tokens_; ++i) {
            static_cast<int32_t*>(positions_->data)[i] = static_cast<int32_t>(first + i);
            static_cast<int64_t*>(places_->data)[i] = first + i;
            auto* mask = static_cast<uint16_t*>(mask_->data) + i * kCells;
            for (int64_t cell = 0; cell < kCells; ++cell) mask[cell] = cell <= first + i ? 0 : 0xfc00;
        }
        compute(threads);
        const auto* out = static_cast<const float*>(nodes_.back()->data);
        return std::vector<float>(out, out + tokens_ * kWidth);
    }

    // Compute it until it was asked so many times whether to go on.
    bool ends_when_asked(int threads, int times) {
        const auto last = [](void* left) { return --*static_cast<int*>(left) == 0; };
        return !compute(threads, {last, &times}) && times == 0;
    }

  private:
    Tensor* rotated(Tensor* x, int64_t heads, int32_t mode) {
        Tensor* t = node(ggml::kOpRope, view(x, kHead, heads, tokens_), positions_, kHead, heads, tokens_, x->data);
        t->op_params[1] = kHead, t->op_params[2] = mode, t->op_params[4] = 4096;
        const float numbers[] = {10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f};
        for (int i = 0; i < 6; ++i) set(t, 5 + i, numbers[i]);
        return t;
    }
    Tensor* stored(Tensor* x, Tensor* cache) {
        Tensor* t = node(ggml::kOpSetRows, view(x, kHead * kKvHeads, tokens_, 1), places_, 1, 1, 1, cache->data);
        t->type = cache->type, t->src[2] = t->view_src = cache;
        std::memcpy(t->ne, cache->ne, sizeof t->ne), std::memcpy(t->nb, cache->nb, sizeof t->nb);
        return t;
    }
    Tensor* attended(Tensor* q, Tensor* k, Tensor* v) {
        Tensor* t = node(ggml::kOpFlashAttnExt, view(q, kHead, tokens_, kHeads), view(k, kHead, kCells, kKvHeads), kHead,
                         kHeads, tokens_);
        std::swap(t->src[0]->nb[1], t->src[0]->nb[2]);
        t->src[0]->nb[1] = kHead * kHeads * sizeof(float), t->src[0]->nb[2] = kHead * sizeof(float);
        t->src[2] = view(v, kHead, kCells, kKvHeads), t->src[3] = mask_;
        set(t, 0, 1 / std::sqrt(static_cast<float>(kHead)));
        return view(t, kWidth, tokens_, 1);
    }

    void build() {
        positions_ = tensor(ggml::kTypeI32, tokens_), places_ = tensor(ggml::kTypeI64, tokens_);
        mask_ = tensor(ggml::kTypeF16, kCells, tokens_);
        x_ = tensor(ggml::kTypeF32, kWidth, tokens_);
        Tensor *keys = tensor(ggml::kTypeF16, kHead * kKvHeads, kCells), *values = tensor(ggml::kTypeF16, kHead * kKvHeads, kCells);
        Tensor* x = node(ggml::kOpScale, x_, nullptr, kWidth, tokens_, 1);
        set(x, 0, 1.5f);
        Tensor* normed = norm(x);
        // What nobody needs any more may lie anywhere in the memory of what is computed then.
        Tensor* room = tensor(ggml::kTypeF32, kWidth, tokens_ + 1);
        Tensor* q = product(weights(kWidth, kWidth), normed, room->data);
        q = norm(view(q, kHead, kHeads, tokens_), nullptr, static_cast<float*>(room->data) + kWidth / 2);
        q = rotated(q, kHeads, ggml::kRopeHalves);
        Tensor* v = product(weights(kWidth, kHead * kKvHeads), normed);
        Tensor* k = product(weights(kWidth, kHead * kKvHeads), normed);
        Tensor* bias = input(kHead * kKvHeads);
        k = node(ggml::kOpAdd, k, bias, kHead * kKvHeads, tokens_, 1, k->data);
        k = rotated(k, kKvHeads, ggml::kRopeNeighbours);
        stored(k, keys), stored(v, values);
        Tensor* out = product(weights(kWidth, kWidth), attended(q, keys, values));
        Tensor* inner = node(ggml::kOpAdd, out, x, kWidth, tokens_, 1, out->data);
        Tensor* again = norm(inner, x->data);
        Tensor *gate = product(weights(kWidth, kHidden), again), *up = product(weights(kWidth, kHidden), again);
        Tensor* hidden = node(ggml::kOpGlu, gate, up, kHidden, tokens_, 1);
        hidden->op_params[0] = ggml::kGluSilu;
        Tensor* down = product(weights(kHidden, kWidth), hidden);
        node(ggml::kOpAdd, down, inner, kWidth, tokens_, 1, down->data);
    }

    int64_t tokens_;
    Tensor *positions_, *places_, *mask_, *x_;
};

// Multiplied, doubled in its place and multiplied again.
class Doubled : Builder {
  public:
    bool check() {
        Tensor* x = node(ggml::kOpScale, input(kWidth), nullptr, kWidth, 1, 1);
        set(x, 0, 1.0f);
        Tensor* w = weights(kWidth, kHidden);
        const Tensor* before = product(w, x);
        set(node(ggml::kOpScale, x, nullptr, kWidth, 1, 1, x->data), 0, 2.0f);
        const Tensor* after = product(w, x);
        compute(2);
        for (int64_t i = 0; i < kHidden; ++i)
            if (static_cast<float*>(after->data)[i] != 2 * static_cast<float*>(before->data)[i])
                return failed("what was overwritten is still used: row", i, best_isa());
        return true;
    }
};

// Plans of graphs that were never seen before, for ever.
bool check_plans() {
    Tensor x = {};
    std::vector<Tensor*> nodes(1000, &x);
    float values[16] = {};
    x.ne[0] = 16, x.ne[1] = x.ne[2] = x.ne[3] = 1, x.nb[0] = 4, x.nb[1] = x.nb[2] = x.nb[3] = 64;
    x.op = ggml::kOpScale, x.flags = ggml::kFlagCompute, x.data = values, x.src[0] = &x;
    Plans plans;
    ggml::Graph graph = {};
    graph.nodes = nodes.data();
    for (int i = 0; i < 100; ++i) {
        graph.uid = i % 4 == 0 ? 0 : static_cast<uint64_t>(i), graph.n_nodes = i % 2 == 0 ? 1 : 1000;
        if (plans.of(&graph, 1).tasks.size() != static_cast<size_t>(graph.n_nodes))
            return failed("the plan of another graph", i, best_isa());
    }
    if (plans.of(&graph, 1).tasks.size() != 1000) return failed("the latest plan was lost", 1000, best_isa());
    return plans.tasks() <= 1 << 14 || failed("plans grow: tasks", static_cast<int64_t>(plans.tasks()), best_isa());
}

bool check(int64_t tokens) {
    const uint32_t seed = random_bits();
    const auto layer_of = [&](int64_t count) {
        random_state = seed;
        return Layer(count);
    };
    std::vector<float> input(tokens * kWidth);
    for (float& value : input) value = random_float();
    Layer layer = layer_of(tokens);
    const std::vector<float> expected = layer.run_with(1, input, 0);
    for (const float value : expected)
        if (!std::isfinite(value)) return failed("not a number: layer of tokens", tokens, best_isa());
    Buffer bytes(expected.size() * sizeof(float));
    std::memcpy(bytes.data(), expected.data(), bytes.size());
    digest_of(bytes);
    for (int threads = 2; threads <= 4; ++threads)
        if (layer.run_with(threads, input, 0) != expected)
            return failed("other bits with more threads: layer of tokens", tokens, best_isa());
    for (int threads = 1; threads <= 4; ++threads)
        if (!layer.ends_when_asked(threads, 3)) return failed("not ended: layer of tokens", tokens, best_isa());
    Layer one = layer_of(1);
    for (int64_t i = 0; i < tokens; ++i) {
        const std::vector<float> alone = one.run_with(2, input, i);
        if (std::memcmp(alone.data(), expected.data() + i * kWidth, kWidth * sizeof(float)) != 0)
            return failed("other bits alone: layer of tokens", tokens, best_isa());
    }
    return true;
}

}  // namespace

bool check_plan() { return Doubled().check() && check_plans() && check(1) && check(5) && check(40); }
