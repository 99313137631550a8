// The noise of a token: Gumbel noise that depends on (seed, position, token id) and on nothing else.
//
// Philox4x32-10 (Salmon et al. 2011) with key (seed low word, seed high word) and counter (id >> 2, position
// low word, position high word, kNoiseDomain) gives four words; word id & 3 is the upper half of 64 random
// bits. The same with kNoiseDomain + 1 gives the lower half. u = (the upper 53 of these bits | 1) / 2^53 is an
// odd multiple of 2^-53, so never 0 or 1; the noise is -log(-log(u)). sampling_reference.py says the same.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

constexpr uint32_t kNoiseDomain = 0x73706378;  // "spcx": keeps these counters apart from other uses of a seed

inline std::array<uint32_t, 4> philox(uint64_t seed, uint64_t position, uint32_t index, uint32_t domain) {
    uint32_t c0 = index, c1 = uint32_t(position), c2 = uint32_t(position >> 32), c3 = domain;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
        c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
        c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(p1);
        c3 = uint32_t(p0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return {c0, c1, c2, c3};
}

inline double gumbel_noise(uint64_t seed, uint64_t position, int32_t id) {
    const uint32_t index = uint32_t(id) >> 2, word = uint32_t(id) & 3;
    const uint64_t upper = philox(seed, position, index, kNoiseDomain)[word];
    const uint64_t lower = philox(seed, position, index, kNoiseDomain + 1)[word];
    const uint64_t bits = (upper << 32 | lower) >> 11 | 1;
    return -std::log(-std::log(double(bits) * 0x1p-53));
}
