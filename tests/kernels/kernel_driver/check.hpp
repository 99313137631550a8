// What the checks of kernels share. Each prints what is wrong and returns false, or adds to `digest`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "isa.hpp"
#include "matmul.hpp"

// Memory that ends where it must: sanitizers see whoever reads or writes beyond.
class Buffer {
  public:
    explicit Buffer(size_t size) : size_(size), p_(static_cast<uint8_t*>(::operator new(size, kAlign))) {}
    ~Buffer() { ::operator delete(p_, kAlign); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    uint8_t* data() { return p_; }
    float* floats() { return reinterpret_cast<float*>(p_); }
    uint16_t* halves() { return reinterpret_cast<uint16_t*>(p_); }
    size_t size() const { return size_; }
    bool operator==(const Buffer& other) const {
        return size_ == other.size_ && std::memcmp(p_, other.p_, size_) == 0;
    }

  private:
    static constexpr std::align_val_t kAlign{specx::kAlignment};
    size_t size_;
    uint8_t* p_;
};

inline uint32_t random_state = 1;

inline uint32_t random_bits() {  // Marsaglia's xorshift
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// Between -2.1 and 2.1.
inline float random_float() { return static_cast<float>(static_cast<int32_t>(random_bits())) * 1e-9f; }

// A half float of magnitude below 1; one in sixteen is subnormal or zero.
inline uint16_t random_half() {
    const uint32_t exponent = random_bits() >> 28;
    return static_cast<uint16_t>((random_bits() >> 16 & 0x83ff) | (exponent < 15 ? exponent : 7) << 10);
}

// Of results that are the same bits on every machine (FNV-1a).
inline uint64_t digest = 14695981039346656037u;

inline void digest_of(Buffer& out) {
    for (size_t i = 0; i < out.size(); ++i) digest = (digest ^ out.data()[i]) * 1099511628211u;
}

inline bool failed(const char* what, int64_t which, specx::Isa isa) {
    std::printf("%s: %lld on %s\n", what, static_cast<long long>(which), isa_name(isa));
    return false;
}

// Those the machine has, but for plain C++: check(isa) of each.
template <class Check>
bool on_every_other_isa(Check check) {
    for (int i = 1; i < specx::kIsaCount; ++i)
        if (isa_available(static_cast<specx::Isa>(i)) && !check(static_cast<specx::Isa>(i))) return false;
    return true;
}

bool check_matmul();
bool check_floats();
bool check_attention();
bool check_rows();
bool check_plan();
