// Multiplies matrices of floats on every instruction set, and holds the results to the plain C++ kernels' bits.
#include "check.hpp"
#include "float_matmul.hpp"
#include "ggml_abi.hpp"

namespace {

using namespace specx;

void fill_weights(int type, Buffer& weights) {
    for (size_t i = 0; i < weights.size() / 4 && type == ggml::kTypeF32; ++i) weights.floats()[i] = random_float();
    for (size_t i = 0; i < weights.size() / 2 && type == ggml::kTypeF16; ++i) weights.halves()[i] = random_half();
    for (size_t i = 0; i < weights.size() / 2 && type == ggml::kTypeBF16; ++i) {
        const float value = random_float();
        std::memcpy(weights.halves() + i, reinterpret_cast<const char*>(&value) + 2, 2);  // its upper half
    }
}

bool check(int type, int64_t k, int64_t rows, int64_t n) {
    const size_t w_stride = static_cast<size_t>(k) * (type == ggml::kTypeF32 ? 4 : 2), x_stride = k * sizeof(float);
    const size_t out_stride = rows * sizeof(float);
    Buffer weights(rows * w_stride), x(n * x_stride), out(n * out_stride);
    fill_weights(type, weights);
    for (int64_t i = 0; i < n * k; ++i) x.floats()[i] = random_float();
    const auto multiply = [&](Isa isa, Buffer& to) {
        for (int part = 0; part < 2; ++part)
            multiply_floats(isa, type, k, rows, n, weights.data(), w_stride, x.data(), x_stride, to.data(), out_stride,
                            part, 2);
    };
    multiply(Isa::generic, out);
    digest_of(out);
    return on_every_other_isa([&](Isa isa) {
        Buffer other(out.size());
        multiply(isa, other);
        return other == out || failed("other bits than plain C++: floats of type", type, isa);
    });
}

}  // namespace

bool check_floats() {
    const int64_t shapes[][3] = {{1, 1, 1}, {16, 4, 3}, {37, 7, 2}, {96, 13, 11}};  // weights, rows, tokens
    const int types[] = {ggml::kTypeF32, ggml::kTypeF16, ggml::kTypeBF16};
    for (const int type : types)
        for (const auto& shape : shapes)
            if (!check(type, shape[0], shape[1], shape[2])) return false;
    return true;
}
