#include "support.hpp"

#include <cstring>

#include "float_matmul.hpp"
#include "weights.hpp"

namespace specx {
namespace {

using ggml::Tensor;

bool has_float_rows(const Tensor* t) { return t->type == ggml::kTypeF32 && t->nb[0] == sizeof(float); }

int64_t elements(const Tensor* t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }

bool same_shape(const Tensor* a, const Tensor* b) { return std::memcmp(a->ne, b->ne, sizeof a->ne) == 0; }

// Whether `b` can be added to, or multiplied with, all rows of `a`: as large as `a`, or a part of a row.
bool fits(const Tensor* b, const Tensor* a) {
    return has_float_rows(b) && (same_shape(a, b) || (is_one_row(b) && b->ne[0] == a->ne[0]));
}

bool supports_rotation(const Tensor* op) {
    const Tensor *x = op->src[0], *positions = op->src[1], *factors = op->src[2];
    const int32_t dims = op->op_params[1], mode = op->op_params[2], first = op->op_params[15];
    const bool halves = mode == ggml::kRopeHalves;
    float base;
    std::memcpy(&base, op->op_params + 5, sizeof base);
    // The table of angles is computed before everything else.
    const bool inputs = positions->op == ggml::kOpNone && positions->type == ggml::kTypeI32 &&
                        positions->view_src == nullptr && positions->ne[0] == op->ne[2] && positions->nb[0] == 4;
    return inputs && (mode == ggml::kRopeNeighbours || halves) && first == 0 && dims > 0 &&
           dims % (halves ? 2 * kRowUnit : kRowUnit) == 0 && dims <= x->ne[0] && op->ne[3] == 1 && base > 0 &&
           (factors == nullptr || (factors->op == ggml::kOpNone && has_float_rows(factors)));
}

bool supports_gate(const Tensor* op) {
    const Tensor *x = op->src[0], *up = op->src[1];
    const int32_t kind = op->op_params[0];
    return (kind == ggml::kGluSilu || kind == ggml::kGluGelu) &&
           (up == nullptr || (has_float_rows(up) && same_shape(up, x)));
}

bool supports_storing(const Tensor* op) {
    const Tensor *x = op->src[0], *ids = op->src[1];
    const bool indexed = (ids->type == ggml::kTypeI64 && ids->nb[0] == 8) ||
                         (ids->type == ggml::kTypeI32 && ids->nb[0] == 4);
    return op->type == ggml::kTypeF16 && op->nb[0] == 2 && indexed && x->ne[2] == 1 && x->ne[3] == 1 &&
           ids->ne[0] == x->ne[1] && elements(ids) == x->ne[1];
}

bool supports_lookup(const Tensor* op) {
    const Tensor *x = op->src[0], *ids = op->src[1];
    return x->ne[2] == 1 && x->ne[3] == 1 && ids->type == ggml::kTypeI32 && ids->nb[0] == 4 &&
           elements(ids) == ids->ne[0] && op->ne[1] == ids->ne[0];
}

}  // namespace

bool as_rows(const Tensor* t, int dims, Rows* rows) {
    const size_t width = t->type == ggml::kTypeF16 ? 2 : sizeof(float);
    size_t step = 0;
    int64_t columns = 1, count = 1;
    for (int i = 0; i < 4; ++i) {
        if (i < dims) {
            if (t->ne[i] != 1 && t->nb[i] != width * columns) return false;
            columns *= t->ne[i];
        } else if (t->ne[i] != 1) {
            if (count > 1 && t->nb[i] != step * count) return false;
            if (count == 1) step = t->nb[i];
            count *= t->ne[i];
        }
    }
    *rows = {static_cast<char*>(t->data), count, columns, step, width};
    return true;
}

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

bool evenly_strided(const Tensor* t) { return t->nb[2] == t->nb[1] * t->ne[1] && t->nb[3] == t->nb[2] * t->ne[2]; }

bool supports_multiplication(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    return is_packed(w) && w->ne[2] == 1 && w->ne[3] == 1 && has_float_rows(x) && has_float_rows(op) &&
           op->op_params[1] != ggml::kHintHadamard;
}

bool supports_floats(const Tensor* op) {
    const Tensor *w = op->src[0], *x = op->src[1];
    const bool weights = w->buffer != nullptr && w->view_src == nullptr &&
                         (w->buffer->usage == ggml::kUsageWeights || is_in_our_buffer(w));
    return weights && float_matmul_supported(w->type) && w->nb[0] == (w->type == ggml::kTypeF32 ? 4u : 2u) &&
           w->ne[2] == 1 && w->ne[3] == 1 && has_float_rows(x) && evenly_strided(x) && has_float_rows(op) &&
           evenly_strided(op) && op->op_params[1] != ggml::kHintHadamard;
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

bool is_empty(const Tensor* op) { return elements(op) == 0; }

bool is_one_row(const Tensor* b) { return b->ne[1] == 1 && b->ne[2] == 1 && b->ne[3] == 1; }

bool has_float_weights(const Tensor* op) {
    return op->op == ggml::kOpMulMat && float_matmul_supported(op->src[0]->type);
}

Rotation rotation_of(const Tensor* op) {
    const auto real = [&](int i) {
        float value;
        std::memcpy(&value, op->op_params + i, sizeof value);
        return value;
    };
    Rotation r = {};
    r.halves = op->op_params[2] == ggml::kRopeHalves;
    r.dims = op->op_params[1], r.trained_context = op->op_params[4];
    r.base = real(5), r.scale = real(6), r.extrapolation = real(7), r.magnitude = real(8);
    r.beta_fast = real(9), r.beta_slow = real(10);
    if (op->src[2] != nullptr) r.factors = static_cast<const float*>(op->src[2]->data);
    return r;
}

Activation activation_of(const Tensor* op) {
    const int32_t gelu = op->op == ggml::kOpGlu ? int32_t{ggml::kGluGelu} : int32_t{ggml::kUnaryGelu};
    return op->op_params[0] == gelu ? Activation::gelu : Activation::silu;
}

int columns_of(const Tensor* op, int64_t count) {
    int found = 0;
    Rows rows;
    for (int dims = 1; dims < 4; ++dims) {
        const auto agrees = [&](const Tensor* t) { return t == nullptr || is_one_row(t) || as_rows(t, dims, &rows); };
        const bool two = op->op == ggml::kOpAdd || op->op == ggml::kOpMul || op->op == ggml::kOpGlu;
        const bool halved = op->op == ggml::kOpGlu && op->src[1] == nullptr;
        if (halved && dims > 1) break;
        if (!as_rows(op->src[0], dims, &rows) || (two && !agrees(op->src[1])) || !as_rows(op, dims, &rows)) continue;
        if (rows.count == count) return dims;
        if (found == 0) found = dims;
    }
    return found;
}

bool supports_rows(const Tensor* op) {
    const Tensor* x = op->src[0];
    switch (op->op) {
        case ggml::kOpAdd:
        case ggml::kOpMul:
        case ggml::kOpRmsNorm:
        case ggml::kOpScale:
        case ggml::kOpUnary:
        case ggml::kOpGlu:
        case ggml::kOpRope:
        case ggml::kOpGetRows:
        case ggml::kOpSetRows: break;
        default: return false;
    }
    const bool floats = has_float_rows(x) && (has_float_rows(op) || op->op == ggml::kOpSetRows);
    if (!floats || op->ne[0] % kRowUnit != 0) return false;
    switch (op->op) {
        case ggml::kOpGetRows: return supports_lookup(op);
        case ggml::kOpSetRows: return supports_storing(op);
        case ggml::kOpAdd:
        case ggml::kOpMul: return same_shape(op, x) && fits(op->src[1], x) && columns_of(op, 0) != 0;
        case ggml::kOpUnary:
            return (op->op_params[0] == ggml::kUnarySilu || op->op_params[0] == ggml::kUnaryGelu) &&
                   columns_of(op, 0) != 0;
        case ggml::kOpRmsNorm: return op->ne[0] <= kLongestNorm && columns_of(op, 0) != 0;
        case ggml::kOpGlu: return supports_gate(op) && columns_of(op, 0) != 0;
        case ggml::kOpRope: return supports_rotation(op) && columns_of(op, 0) != 0;
        default: return columns_of(op, 0) != 0;
    }
}

}  // namespace specx
