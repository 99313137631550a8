// Kernels in plain C++, four rows at a time: for processors without any of the others, and the yardstick of the
// tests, which hold the others to its bits.
#include <algorithm>
#include <cmath>

#include "table.hpp"

namespace specx {
namespace {

struct Generic {
    static constexpr int kLanes = 4;
    static constexpr int together(const Format&, int) { return 1; }
    static constexpr bool kOffsetSigned = false;
    struct Bytes { uint8_t at[16]; };
    struct Ints { int at[kLanes]; };
    struct Floats { float at[kLanes]; };

    template <class F>
    static Bytes each_byte(F f) {
        Bytes out;
        for (int i = 0; i < 16; ++i) out.at[i] = static_cast<uint8_t>(f(i));
        return out;
    }
    template <class F>
    static Floats each_float(F f) {
        Floats out;
        for (int i = 0; i < kLanes; ++i) out.at[i] = f(i);
        return out;
    }

    static Bytes load(const uint8_t* p) { return load_as<Bytes>(p); }
    static Bytes offset(Bytes w) { return w; }
    template <int shift>
    static Bytes nibbles(Bytes w) {
        return each_byte([&](int i) { return w.at[i] >> shift & 15; });
    }
    template <int column>
    static Bytes bits(Bytes low, Bytes plane) {
        return each_byte([&](int i) { return low.at[i] | (plane.at[i] >> column & 1) << 4; });
    }
    template <int column>
    static Bytes pairs(Bytes low, Bytes plane) {
        return each_byte([&](int i) { return low.at[i] | (plane.at[i] >> 2 * column & 3) << 4; });
    }
    static Bytes lookup(const int8_t* values, Bytes index) {
        return each_byte([&](int i) { return values[index.at[i]]; });
    }

    static Ints splat_int(int x) { return {{x, x, x, x}}; }
    template <int largest, int first, int columns, int tokens, class Weights>
    static void dot(const Weights& w, const int8_t* x, Ints* sum) {
        each<first, columns>([&](auto c) {
            const Bytes column = w.template get<c>();
            for (int r = 0; r < kLanes; ++r)
                for (int i = 0; i < 4; ++i)
                    // Quants below 128 are the same read as signed bytes.
                    sum->at[r] += static_cast<int8_t>(column.at[4 * r + i]) * x[4 * c + i];
        });
    }

    static Floats zero() { return {}; }
    static Floats load_floats(const float* p) { return load_as<Floats>(p); }
    static Floats splat(float x) {
        return each_float([=](int) { return x; });
    }
    static Floats as_floats(Ints x) { return load_as<Floats>(&x); }
    static Floats add(Floats a, Floats b) {
        return each_float([&](int i) { return a.at[i] + b.at[i]; });
    }
    static Floats mul(Floats a, Floats b) {
        return each_float([&](int i) { return a.at[i] * b.at[i]; });
    }
    static Floats fma(Floats a, Floats b, Floats c) {
        return each_float([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
    }
    static void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

    static float quantize(const float* x, int8_t* q, int32_t (&sums)[2]) {
        int32_t largest = 0;
        for (int i = 0; i < kBlock; ++i) largest = std::max(largest, load_as<int32_t>(x + i) & 0x7fffffff);
        const BlockScale scale(largest);
        sums[0] = sums[1] = 0;
        for (int i = 0; i < kBlock; ++i) {
            q[i] = static_cast<int8_t>(scale.usable ? std::nearbyint(x[i] * scale.inverse) : 0.0f);
            sums[i / 16] += q[i];
        }
        return scale.d;
    }

    static float half_to_float(uint16_t half) {
        const int exponent = half >> 10 & 31, fraction = half & 1023;
        const float sign = half >> 15 ? -1.0f : 1.0f;
        if (exponent == 31) return fraction ? NAN : sign * INFINITY;
        if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
        return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    }
    static void half_to_float(const uint8_t* p, float* out) {
        for (int i = 0; i < kRows; ++i) out[i] = half_to_float(load_as<uint16_t>(p + 2 * i));
    }
};

}  // namespace

const Kernels* generic_kernels() { return all_kernels<Generic, 4>(); }

}  // namespace specx
