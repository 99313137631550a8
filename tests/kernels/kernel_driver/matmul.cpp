// Packs, unpacks, quantizes and multiplies on every instruction set, and holds the results to the plain C++ kernels' bits.
#include "check.hpp"
#include "formats.hpp"

namespace {

using namespace specx;

// Any bytes, but half floats of modest size where the type has its scales.
void fill_weights(const Format& f, Buffer& weights) {
    for (size_t i = 0; i < weights.size(); ++i) weights.data()[i] = static_cast<uint8_t>(random_bits() >> 24);
    const int first = f.scale == Scale::d_int8 ? 208 : 0, count = f.has_minimum() ? 2 : 1;
    for (size_t block = 0; block < weights.size(); block += static_cast<size_t>(f.source_bytes))
        for (int i = 0; i < count; ++i) weights.data()[block + first + 2 * i + 1] = 0x20 | (random_bits() >> 30);
}

void multiply_all(Isa isa, const Format& f, int64_t k, int64_t rows, int64_t n, Buffer& packed, Buffer& x, Buffer& out) {
    Buffer scratch(scratch_size(f.type, k, n));
    for (int part = 0; part < 3; ++part)
        quantize_rows(isa, f.type, k, n, x.floats(), static_cast<size_t>(k) * 4, scratch.data(), part, 3);
    for (int part = 0; part < 2; ++part)
        multiply(isa, f.type, k, rows, n, packed.data(), scratch.data(), out.floats(), static_cast<size_t>(rows) * 4,
                 part, 2);
}

bool check(const Format& f, int64_t blocks, int64_t rows, int64_t n) {
    const int64_t k = blocks * f.blocks * kBlock;
    Buffer weights(static_cast<size_t>(rows * blocks) * f.source_bytes), packed(packed_size(f.type, k, rows));
    Buffer unpacked(weights.size()), x(static_cast<size_t>(n * k) * 4), out(static_cast<size_t>(n * rows) * 4);
    fill_weights(f, weights);
    for (int64_t i = 0; i < n * k; ++i) x.floats()[i] = random_float();
    pack(f.type, k, rows, weights.data(), packed.data(), 0, rows);
    unpack(f.type, k, rows, packed.data(), unpacked.data(), 0, rows);
    if (!(unpacked == weights)) return failed("unpack is not the inverse of pack: type", f.type, Isa::generic);

    multiply_all(Isa::generic, f, k, rows, n, packed, x, out);
    digest_of(out);
    return on_every_other_isa([&](Isa isa) {
        Buffer other(out.size());
        multiply_all(isa, f, k, rows, n, packed, x, other);
        return other == out || failed("other bits than plain C++: type", f.type, isa);
    });
}

}  // namespace

bool check_matmul() {
    const int64_t shapes[][3] = {{1, 1, 1}, {2, 16, 2}, {3, 37, 3}, {5, 20, 7}};  // blocks, rows, tokens
    for (const Format* f : kFormats)
        for (const auto& shape : shapes)
            if (!check(*f, shape[0], shape[1], shape[2])) return false;
    return true;
}
