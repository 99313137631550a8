// Norms, activations, rotary embeddings and the like on every instruction set: the bits of plain C++.
#include "rows.hpp"

#include <initializer_list>

#include "check.hpp"

namespace {

using namespace specx;

constexpr int64_t kColumns = 96;

// Everything there is, one result after the other.
void compute_all(Isa isa, Buffer& x, Buffer& y, Buffer& out) {
    const RowKernels& k = row_kernels(isa);
    const float *a = x.floats(), *b = y.floats();
    float* at = out.floats();
    const auto next = [&] { return at += kColumns; };
    k.add(kColumns, a, b, at), k.multiply(kColumns, a, b, next()), k.scale(kColumns, a, 1.5f, -0.25f, next());
    for (const Activation activation : {Activation::silu, Activation::gelu}) {
        k.activate(activation, kColumns, a, next()), k.gate(activation, kColumns, a, b, next());
    }
    Buffer sums(kColumns / kRowUnit * sizeof(float));
    k.squares(kColumns, a, sums.floats());
    float* normed = next();
    k.normalize(kColumns, a, norm_factor(kColumns, sums.floats(), 1e-5f), b, normed, next());
    for (const bool halves : {false, true}) {
        Rotation rotation = {halves, kColumns, 4096, 10000.0f, 0.25f, 1.0f, 1.1f, 32.0f, 1.0f, nullptr};
        Buffer table(2 * kColumns * sizeof(float));
        rotation_table(rotation, 70000, table.floats());
        (halves ? k.rotate_halves : k.rotate_neighbours)(kColumns, a, table.floats(), next());
    }
    k.to_half(kColumns, a, reinterpret_cast<uint16_t*>(next()));
}

}  // namespace

bool check_rows() {
    constexpr size_t kRow = kColumns * sizeof(float);
    Buffer x(kRow), y(kRow), expected(11 * kRow + kRow / 2);
    for (int64_t i = 0; i < kColumns; ++i) x.floats()[i] = 4 * random_float(), y.floats()[i] = random_float();
    compute_all(Isa::generic, x, y, expected);
    digest_of(expected);
    return on_every_other_isa([&](Isa isa) {
        Buffer out(expected.size());
        compute_all(isa, x, y, out);
        return out == expected || failed("other bits than plain C++: rows of", kColumns, isa);
    });
}
