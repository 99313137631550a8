#include "rows.hpp"

#include <cmath>

#include "row_kernels.hpp"

namespace specx {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Cosine and sine by the polynomials of fdlibm, which need no fused operations and are below 1e-15 wrong for angles up
// to 10^6: the same bits everywhere, which those of a system's library need not have.
struct Direction {
    double cosine, sine;
};

Direction direction(double angle) {
    constexpr double kHigh = 1.57079632673412561417, kLow = 6.07710050650619224932e-11;  // pi/2; times n is exact
    const double n = std::nearbyint(angle * (2 / kPi));
    const double x = (angle - n * kHigh) - n * kLow, z = x * x;
    const double odd = -1.66666666666666324348e-01 +
                       z * (8.33333333332248946124e-03 +
                            z * (-1.98412698298579493134e-04 +
                                 z * (2.75573137070700676789e-06 +
                                      z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10))));
    const double even = 4.16666666666666019037e-02 +
                        z * (-1.38888888888741095749e-03 +
                             z * (2.48015872894767294178e-05 +
                                  z * (-2.75573143513906633035e-07 +
                                       z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))));
    const double sine = x + x * z * odd, cosine = 1 - (0.5 * z - z * z * even);
    switch (static_cast<int64_t>(n) & 3) {
        case 0: return {cosine, sine};
        case 1: return {-sine, cosine};
        case 2: return {-cosine, -sine};
        default: return {sine, -cosine};
    }
}

// The pair, as a fraction, whose wavelength makes `turns` turns in the context that was trained.
double pair_of_turns(const Rotation& r, double turns) {
    return r.dims * std::log(r.trained_context / (turns * 2 * kPi)) / (2 * std::log(r.base));
}

// Where YaRN goes over from extrapolating (pairs that turn often) to interpolating: 1 to 0, as in ggml.
struct Ramp {
    double low, high;

    explicit Ramp(const Rotation& r)
        : low(std::fmax(0.0, std::floor(pair_of_turns(r, r.beta_fast)))),
          high(std::fmin(r.dims - 1.0, std::ceil(pair_of_turns(r, r.beta_slow)))) {}

    double at(int64_t pair) const {
        const double y = (pair - low) / std::fmax(0.001, high - low);
        return 1 - std::fmin(1.0, std::fmax(0.0, y));
    }
};

}  // namespace

const RowKernels& row_kernels(Isa isa) {
    const RowKernels* found = nullptr;
    if (isa == Isa::avx512_vnni || isa == Isa::amx_int8) found = row_kernels_avx512();
    if (isa == Isa::avx2 || isa == Isa::avx_vnni) found = row_kernels_avx2();
    if (isa == Isa::neon_dotprod || isa == Isa::neon_i8mm) found = row_kernels_neon();
    return found != nullptr ? *found : *row_kernels_generic();
}

float norm_factor(int64_t n, const float* sums, float epsilon) {
    const int64_t count = n / kRowUnit;
    double total[4] = {};  // additions that need not wait for each other
    for (int64_t i = 0; i < count; ++i) total[i % 4] += sums[i];
    const double mean = ((total[0] + total[1]) + (total[2] + total[3])) / static_cast<double>(n);
    return 1.0f / std::sqrt(static_cast<float>(mean) + epsilon);
}

bool Rotation::operator==(const Rotation& o) const {
    return halves == o.halves && dims == o.dims && trained_context == o.trained_context && base == o.base &&
           scale == o.scale && extrapolation == o.extrapolation && magnitude == o.magnitude &&
           beta_fast == o.beta_fast && beta_slow == o.beta_slow && factors == o.factors;
}

void rotation_table(const Rotation& r, int32_t position, float* table) {
    const int64_t pairs = r.dims / 2;
    const double ratio = std::pow(static_cast<double>(r.base), -2.0 / static_cast<double>(r.dims));
    const Ramp ramp(r);
    double frequency = 1, magnitude = r.magnitude;
    if (r.extrapolation != 0.0f) magnitude *= 1 + 0.1 * std::log(1.0 / r.scale);
    for (int64_t i = 0; i < pairs; ++i, frequency *= ratio) {
        const double far = frequency * position / (r.factors != nullptr ? r.factors[i] : 1.0f);
        const double near = far * r.scale;
        const double mix = r.extrapolation != 0.0f ? ramp.at(i) * r.extrapolation : 0;
        const Direction d = direction(near * (1 - mix) + far * mix);
        const float cosine = static_cast<float>(d.cosine * magnitude), sine = static_cast<float>(d.sine * magnitude);
        if (r.halves) {
            table[i] = cosine, table[pairs + i] = sine;
        } else {
            table[2 * i] = table[2 * i + 1] = cosine;
            table[r.dims + 2 * i] = -sine, table[r.dims + 2 * i + 1] = sine;
        }
    }
}

}  // namespace specx
