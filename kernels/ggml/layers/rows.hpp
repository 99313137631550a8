// What a layer does to rows of floats between two multiplications: norms, activations, rotary embeddings, sums,
// copies. One set of functions for each instruction set, all with the same bits.
//
// Counts of elements are multiples of 16, unless said otherwise. Results may be written over an operand.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace specx {

constexpr int64_t kRowUnit = 16;  // elements: what functions take is a multiple of it
constexpr int64_t kLongestNorm = 65536;

// x * 1 / (1 + e^-z) with z = x for SiLU (Elfwing et al., 2017), and z = 2 sqrt(2/pi) (x + 0.044715 x^3) for GELU in the
// form with a hyperbolic tangent (Hendrycks and Gimpel, 2016): (1 + tanh u) / 2 = 1 / (1 + e^-2u).
enum class Activation { silu, gelu };

struct RowKernels {
    void (*add)(int64_t n, const float* a, const float* b, float* out);
    void (*multiply)(int64_t n, const float* a, const float* b, float* out);
    void (*scale)(int64_t n, const float* x, float factor, float bias, float* out);  // x * factor + bias
    void (*activate)(Activation activation, int64_t n, const float* x, float* out);
    void (*gate)(Activation activation, int64_t n, const float* x, const float* up, float* out);  // times `up`

    // sums[i] = the sum of the squares of x[16 i] to x[16 i + 15].
    void (*squares)(int64_t n, const float* x, float* sums);
    // x * factor * weight; `normed`, if it is not null, gets x * factor. `weight` may be null.
    void (*normalize)(int64_t n, const float* x, float factor, const float* weight, float* normed, float* out);

    // Rotate pairs by the angles of a rotation_table() of the same `dims`: x[i] with x[i + dims / 2] (`dims` a multiple
    // of 32), or x[2 i] with x[2 i + 1].
    void (*rotate_halves)(int64_t dims, const float* x, const float* table, float* out);
    void (*rotate_neighbours)(int64_t dims, const float* x, const float* table, float* out);

    void (*to_half)(int64_t n, const float* x, uint16_t* out);
};

const RowKernels& row_kernels(Isa isa);

// 1 / sqrt(mean of squares + epsilon) (Zhang and Sennrich, 2019), from the sums of `squares` over a row of n elements.
// They are added up in 64 bits, in an order that depends on n alone.
float norm_factor(int64_t n, const float* sums, float epsilon);

// What rotary embeddings depend on (Su et al., 2021), in ggml's terms; YaRN (Peng et al., 2023) where `extrapolation`
// is not 0.
struct Rotation {
    bool halves;  // pairs are x[i] and x[i + dims / 2], and not neighbours
    int64_t dims, trained_context;
    float base, scale, extrapolation, magnitude, beta_fast, beta_slow;
    const float* factors;  // [dims / 2] that the frequencies are divided by, or null

    bool operator==(const Rotation& other) const;
};

// What the functions above want of the angles of a position: table[2 * dims]. Halves: cosines of all pairs, then sines
// of all pairs. Neighbours: each cosine twice, then each sine twice, first negative. Angles are computed in 64 bits.
void rotation_table(const Rotation& rotation, int32_t position, float* table);

}  // namespace specx
