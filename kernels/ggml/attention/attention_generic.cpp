// Attention in plain C++, for any processor. Fused multiply-adds are exact functions, as on the others.
#include <cmath>

#include "attention_kernels.hpp"
#include "attention_tile.hpp"

namespace specx {
namespace {

float half_to_float(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t rest = half & 0x7FFF;
    float value;
    if (rest >= 0x7C00) {  // infinity or NaN
        uint32_t bits = 0x7F800000 | (rest & 0x03FF) << 13;
        std::memcpy(&value, &bits, sizeof value);
    } else {  // the exponent's bias differs by 112; this multiplication is exact, for subnormals too
        uint32_t bits = rest << 13;
        std::memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
    }
    return sign != 0 ? -value : value;
}

struct Generic {
    struct reg {
        float lane[4];
    };
    static constexpr int kWidth = 4;
    static constexpr int kVectors = 4;
    static constexpr int kCells = 4;

    template <class Function>
    static reg each(Function function) {
        return {{function(0), function(1), function(2), function(3)}};
    }
    static void keep(reg*) {}
    static reg load(const float* p) {
        return each([&](int i) { return p[i]; });
    }
    static void store(float* p, reg a) { std::memcpy(p, a.lane, sizeof a.lane); }
    static reg set(float a) { return {{a, a, a, a}}; }
    static reg add(reg a, reg b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static reg mul(reg a, reg b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    static reg div(reg a, reg b) {
        return each([&](int i) { return a.lane[i] / b.lane[i]; });
    }
    static reg fma(reg a, reg b, reg c) {
        return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
    }
    static reg max(reg a, reg b) {
        return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static reg min(reg a, reg b) {
        return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static reg select_below(reg a, reg b, reg x, reg y) {
        return each([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
    }
    static reg round_even(reg a) {
        return each([&](int i) { return std::nearbyint(a.lane[i]); });
    }
    static reg power_of_two(reg n) {
        return each([&](int i) { return std::ldexp(1.0f, static_cast<int>(n.lane[i])); });
    }
    static float fold_sums(const reg* sums) {
        reg four = add(add(sums[0], sums[2]), add(sums[1], sums[3]));
        return (four.lane[0] + four.lane[2]) + (four.lane[1] + four.lane[3]);
    }
    static float reduce_max(reg a) {
        float low = a.lane[0] > a.lane[2] ? a.lane[0] : a.lane[2];
        float high = a.lane[1] > a.lane[3] ? a.lane[1] : a.lane[3];
        return low > high ? low : high;
    }
    static reg load_half(const uint16_t* p) {
        return each([&](int i) { return half_to_float(p[i]); });
    }
    static reg load_int8(const int8_t* p) {
        return each([&](int i) { return static_cast<float>(p[i]); });
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return set(half_to_float(half));
    }
    static void transpose_halves(const char* rows, int64_t stride, uint16_t* out, int64_t to) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 8; ++j) std::memcpy(out + j * to + i, rows + i * stride + 2 * j, 2);
        }
    }
    static void transpose_bytes(const char* rows, int64_t stride, int8_t* out, int64_t to) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 16; ++j) std::memcpy(out + j * to + i, rows + i * stride + j, 1);
        }
    }
};

constexpr AttentionKernels kKernels = kernels_of<Generic>();

}  // namespace

const AttentionKernels* attention_kernels_generic() { return &kKernels; }

}  // namespace specx
