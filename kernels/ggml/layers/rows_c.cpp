// rows.hpp for the tests, through ctypes: one C function each. Instruction sets by number, see isa.hpp.
#include "rows.hpp"

#define SPECX_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const specx::RowKernels& kernels(int isa) { return specx::row_kernels(static_cast<specx::Isa>(isa)); }

specx::Activation activation(int gelu) { return gelu != 0 ? specx::Activation::gelu : specx::Activation::silu; }

}  // namespace

SPECX_EXPORT void specx_rows_add(int isa, int64_t n, const float* a, const float* b, float* out) {
    kernels(isa).add(n, a, b, out);
}
SPECX_EXPORT void specx_rows_multiply(int isa, int64_t n, const float* a, const float* b, float* out) {
    kernels(isa).multiply(n, a, b, out);
}
SPECX_EXPORT void specx_rows_scale(int isa, int64_t n, const float* x, float factor, float bias, float* out) {
    kernels(isa).scale(n, x, factor, bias, out);
}
SPECX_EXPORT void specx_rows_activate(int isa, int gelu, int64_t n, const float* x, float* out) {
    kernels(isa).activate(activation(gelu), n, x, out);
}
SPECX_EXPORT void specx_rows_gate(int isa, int gelu, int64_t n, const float* x, const float* up, float* out) {
    kernels(isa).gate(activation(gelu), n, x, up, out);
}
// A whole norm of one row; `sums` has n / 16 floats, `normed` and `weight` may be null.
SPECX_EXPORT void specx_rows_norm(int isa, int64_t n, const float* x, float epsilon, const float* weight, float* sums,
                                  float* normed, float* out) {
    kernels(isa).squares(n, x, sums);
    kernels(isa).normalize(n, x, specx::norm_factor(n, sums, epsilon), weight, normed, out);
}
// One head; `table` has 2 * dims floats. `numbers`: base, scale, extrapolation, magnitude, beta_fast, beta_slow.
SPECX_EXPORT void specx_rows_rotate(int isa, int halves, int64_t dims, int64_t trained_context, const float* numbers,
                                    const float* factors, int32_t position, const float* x, float* table, float* out) {
    const specx::Rotation r = {halves != 0, dims,       trained_context, numbers[0], numbers[1],
                               numbers[2],  numbers[3], numbers[4],      numbers[5], factors};
    specx::rotation_table(r, position, table);
    (halves != 0 ? kernels(isa).rotate_halves : kernels(isa).rotate_neighbours)(dims, x, table, out);
}
SPECX_EXPORT void specx_rows_to_half(int isa, int64_t n, const float* x, uint16_t* out) {
    kernels(isa).to_half(n, x, out);
}
