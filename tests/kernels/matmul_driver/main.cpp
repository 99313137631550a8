// Packs, unpacks, quantizes and multiplies on every instruction set of the machine, in memory that ends where it must,
// and holds the results to the plain C++ kernels' bits. Prints the instruction sets, and a digest of the results that is
// the same on every machine.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "formats.hpp"
#include "matmul.hpp"

namespace {

using namespace specx;

class Buffer {
  public:
    explicit Buffer(size_t size) : size_(size), p_(static_cast<uint8_t*>(::operator new(size, kAlign))) {}
    ~Buffer() { ::operator delete(p_, kAlign); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    uint8_t* data() { return p_; }
    float* floats() { return reinterpret_cast<float*>(p_); }
    size_t size() const { return size_; }
    bool operator==(const Buffer& other) const {
        return size_ == other.size_ && std::memcmp(p_, other.p_, size_) == 0;
    }

  private:
    static constexpr std::align_val_t kAlign{kAlignment};
    size_t size_;
    uint8_t* p_;
};

uint32_t random_state = 1;

uint32_t random_bits() {  // Marsaglia's xorshift
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// Any bytes, but half floats of modest size where the type has its scales.
void fill_weights(const Format& f, Buffer& weights) {
    for (size_t i = 0; i < weights.size(); ++i) weights.data()[i] = static_cast<uint8_t>(random_bits() >> 24);
    const int first = f.scale == Scale::d_int8 ? 208 : 0, count = f.has_minimum() ? 2 : 1;
    for (size_t block = 0; block < weights.size(); block += static_cast<size_t>(f.source_bytes))
        for (int i = 0; i < count; ++i) weights.data()[block + first + 2 * i + 1] = 0x20 | (random_bits() >> 30);
}

uint64_t digest = 14695981039346656037u;  // FNV-1a

void digest_of(Buffer& out) {
    for (size_t i = 0; i < out.size(); ++i) digest = (digest ^ out.data()[i]) * 1099511628211u;
}

bool failed(const char* what, const Format& f, const char* isa) {
    std::printf("%s: type %d on %s\n", what, f.type, isa);
    return false;
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
    for (int64_t i = 0; i < n * k; ++i) x.floats()[i] = static_cast<float>(static_cast<int32_t>(random_bits())) * 1e-9f;
    pack(f.type, k, rows, weights.data(), packed.data(), 0, rows);
    unpack(f.type, k, rows, packed.data(), unpacked.data(), 0, rows);
    if (!(unpacked == weights)) return failed("unpack is not the inverse of pack", f, "any");

    multiply_all(Isa::generic, f, k, rows, n, packed, x, out);
    digest_of(out);
    for (int i = 1; i < kIsaCount; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (!isa_available(isa)) continue;
        Buffer other(out.size());
        multiply_all(isa, f, k, rows, n, packed, x, other);
        if (!(other == out)) return failed("other bits than plain C++", f, isa_name(isa));
    }
    return true;
}

}  // namespace

int main() {
    const int64_t shapes[][3] = {{1, 1, 1}, {2, 16, 2}, {3, 37, 3}, {5, 20, 7}};  // blocks, rows, tokens
    for (const Format* f : kFormats)
        for (const auto& shape : shapes)
            if (!check(*f, shape[0], shape[1], shape[2])) return 1;
    for (int i = 0; i < kIsaCount; ++i)
        if (isa_available(static_cast<Isa>(i))) std::printf("%s ", isa_name(static_cast<Isa>(i)));
    std::printf("\n%016llx\n", static_cast<unsigned long long>(digest));
    return 0;
}
