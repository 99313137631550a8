// Vectors of floats in plain C++: fused multiply-adds are exact functions, as on the others. What they have:
// vector_math.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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

// Rounded to nearest, ties to even; the payload of a NaN is cut off, as processors do.
uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (magnitude >> 13 & 0x03FF));
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7C00);  // 65536: infinity
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the last bits, rounded
        float rounded = std::fabs(value) + 0.5f;
        std::memcpy(&bits, &rounded, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000));
    }
    const uint32_t rounded = magnitude - 0x38000000 + 0x0FFF + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | rounded >> 13);  // a carry out of the mantissa is the next exponent
}

struct VectorGeneric {
    struct reg {
        float lane[4];
    };
    static constexpr int kWidth = 4;
    static constexpr int kVectors = 4;

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
    static reg swap_pairs(reg a) { return {{a.lane[1], a.lane[0], a.lane[3], a.lane[2]}}; }
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
    static void store_half(uint16_t* p, reg a) {
        for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(a.lane[i]);
    }
    static reg load_int8(const int8_t* p) {
        return each([&](int i) { return static_cast<float>(p[i]); });
    }
    static reg set_half(const char* p) {
        uint16_t half;
        std::memcpy(&half, p, 2);
        return set(half_to_float(half));
    }
};

}  // namespace
}  // namespace specx
