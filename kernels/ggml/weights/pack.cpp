#include "pack.hpp"

#include <cstring>

namespace specx {
namespace {

// The quants of one row of a block of 32, a byte each: word c % 4 of part c / 4 is column c. Everything works on the bytes
// of four (little-endian) words at once, in the 128 bits that every processor has: packing waits for memory with those.
using Words = uint32_t __attribute__((vector_size(16)));
struct Quants {
    Words part[2];
};

constexpr uint32_t kNibbles = 0x0f0f0f0f, kPairs = 0x03030303, kBits = 0x01010101;

Words load_words(const uint8_t* p) {
    Words words;
    std::memcpy(&words, p, sizeof words);
    return words;
}

void store_words(uint8_t* p, Words words) { std::memcpy(p, &words, sizeof words); }

uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

#ifdef __clang__
#define SPECX_CHOOSE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SPECX_CHOOSE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// Word j of word[i] becomes word i of word[j].
void transpose(Words (&word)[4]) {
    const Words a = SPECX_CHOOSE(word[0], word[1], 0, 4, 1, 5), b = SPECX_CHOOSE(word[0], word[1], 2, 6, 3, 7);
    const Words c = SPECX_CHOOSE(word[2], word[3], 0, 4, 1, 5), d = SPECX_CHOOSE(word[2], word[3], 2, 6, 3, 7);
    word[0] = SPECX_CHOOSE(a, c, 0, 1, 4, 5), word[1] = SPECX_CHOOSE(a, c, 2, 3, 6, 7);
    word[2] = SPECX_CHOOSE(b, d, 0, 1, 4, 5), word[3] = SPECX_CHOOSE(b, d, 2, 3, 6, 7);
}

// Where the parts of a source block are. Offsets in bytes; what a type lacks is unused.
struct Source {
    int d, scales, scale_bytes, low, high;
};

constexpr Source source_of(int type) {
    switch (type) {
        case kQ4_0.type:
        case kIQ4_NL.type: return {0, 0, 0, 2, 0};
        case kQ4_1.type: return {0, 0, 0, 4, 0};
        case kQ5_0.type: return {0, 0, 0, 6, 2};
        case kQ5_1.type: return {0, 0, 0, 8, 4};
        case kQ8_0.type: return {0, 0, 0, 2, 0};
        case kQ4_K.type: return {0, 4, 12, 16, 0};
        case kQ5_K.type: return {0, 4, 12, 48, 16};
        default: return {208, 192, 16, 0, 128};  // Q6_K
    }
}

// Bit 4 of the quants of a Q5_0 or Q5_1 block: bit i of one little-endian word is that of quant i. Spread to
// one byte each, and gathered again.
Words spread_bits(const uint8_t* bits, int part) {
    const uint32_t half = bits[2 * part] | static_cast<uint32_t>(bits[2 * part + 1]) << 8;
    const Words four = Words{half, half >> 4, half >> 8, half >> 12} & 0xf;
    return ((four | four << 7 | four << 14 | four << 21) & kBits) << 4;
}

uint32_t gather_bits(uint32_t word) {
    return (word >> 4 & 1) | (word >> 11 & 2) | (word >> 18 & 4) | (word >> 25 & 8);
}

// The source's order of nibbles: at which byte of the low part the 16 bytes for a part of block j begin, and in which
// half of each they are.
struct Place {
    int byte, shift;
};

template <int type>
Place low_place(int j, int part) {
    if constexpr (type == kQ8_0.type) return {16 * part, 0};
    if constexpr (type == kQ4_K.type || type == kQ5_K.type) return {j / 2 * 32 + 16 * part, j % 2 * 4};
    if constexpr (type == kQ6_K.type) return {j / 4 * 64 + j % 2 * 32 + 16 * part, j % 4 / 2 * 4};
    return {0, 4 * part};
}

template <int type>
Quants read_quants(const uint8_t* block, int j) {
    constexpr Source at = source_of(type);
    Quants q;
    for (int part = 0; part < 2; ++part) {
        const Place low = low_place<type>(j, part);
        const uint8_t* high = block + at.high + 16 * part;
        q.part[part] = load_words(block + at.low + low.byte);
        if constexpr (type != kQ8_0.type) q.part[part] = q.part[part] >> low.shift & kNibbles;
        if constexpr (type == kQ5_0.type || type == kQ5_1.type) q.part[part] |= spread_bits(block + at.high, part);
        if constexpr (type == kQ5_K.type) q.part[part] |= (load_words(high) >> j & kBits) << 4;
        if constexpr (type == kQ6_K.type)
            q.part[part] |= (load_words(high + j / 4 * 32) >> j % 4 * 2 & kPairs) << 4;
    }
    return q;
}

// Adds the quants to a block that was zeroed before.
template <int type>
void write_quants(const Quants& q, uint8_t* block, int j) {
    constexpr Source at = source_of(type);
    const auto add = [](uint8_t* p, Words bits) { store_words(p, load_words(p) | bits); };
    for (int part = 0; part < 2; ++part) {
        const Place low = low_place<type>(j, part);
        const Words words = q.part[part];
        uint8_t* high = block + at.high + 16 * part;
        add(block + at.low + low.byte, type == kQ8_0.type ? words : (words & kNibbles) << low.shift);
        if constexpr (type == kQ5_0.type || type == kQ5_1.type)
            for (int c = 0; c < 4; ++c)
                block[at.high + 2 * part + c / 2] |= static_cast<uint8_t>(gather_bits(words[c]) << (4 * (c % 2)));
        if constexpr (type == kQ5_K.type) add(high, (words >> 4 & kBits) << j);
        if constexpr (type == kQ6_K.type) add(high + j / 4 * 32, (words >> 4 & kPairs) << j % 4 * 2);
    }
}

// Four rows of one plane, whose first row's first word is at `p`.
void write_plane(Plane plane, const Quants (&q)[4], uint8_t* p) {
    for (int part = 0; part < 2; ++part) {
        Words column[4];
        for (int row = 0; row < 4; ++row) {
            const Words words = q[row].part[part], others = q[row].part[1];
            column[row] = plane == Plane::bytes     ? words
                          : plane == Plane::nibbles ? (words & kNibbles) | (others & kNibbles) << 4
                          : plane == Plane::pairs   ? words >> 4 & kPairs
                                                    : (words >> 4 & kBits) | (others & kBits << 4);
        }
        transpose(column);
        switch (plane) {
            case Plane::bytes:
                for (int c = 0; c < 4; ++c) store_words(p + (4 * part + c) * kColumnBytes, column[c]);
                break;
            case Plane::nibbles:
                for (int c = 0; c < 4; ++c) store_words(p + c * kColumnBytes, column[c]);
                return;
            case Plane::pairs:
                store_words(p + part * kColumnBytes, column[0] | column[1] << 2 | column[2] << 4 | column[3] << 6);
                break;
            case Plane::bits:
                store_words(p, column[0] | column[1] << 1 | column[2] << 2 | column[3] << 3);
                return;
            case Plane::none: return;
        }
    }
}

// One row of one plane, added to quants that were zeros.
void read_plane(Plane plane, const uint8_t* p, Quants& q) {
    for (int c = 0; c < kColumns; ++c) {
        uint32_t word = 0;
        switch (plane) {
            case Plane::bytes: word = load_word(p + c * kColumnBytes); break;
            case Plane::nibbles: word = load_word(p + c % 4 * kColumnBytes) >> c / 4 * 4 & kNibbles; break;
            case Plane::pairs: word = (load_word(p + c / 4 * kColumnBytes) >> c % 4 * 2 & kPairs) << 4; break;
            case Plane::bits: word = (load_word(p) >> c & kBits) << 4; break;
            case Plane::none: return;
        }
        q.part[c / 4][c % 4] |= word;
    }
}

// The header of a row, to and from the interleaved one: half floats first, then single bytes.
template <int type>
void write_header(const uint8_t* block, int row, uint8_t* header) {
    constexpr Source at = source_of(type);
    constexpr int halves = (kFormats[format_index(type)]->header_bytes - at.scale_bytes) / 2;
    for (int h = 0; h < halves; ++h) std::memcpy(header + (h * kRows + row) * 2, block + at.d + 2 * h, 2);
    for (int i = 0; i < at.scale_bytes; ++i) header[(2 * halves + i) * kRows + row] = block[at.scales + i];
}

template <int type>
void read_header(const uint8_t* header, int row, uint8_t* block) {
    constexpr Source at = source_of(type);
    constexpr int halves = (kFormats[format_index(type)]->header_bytes - at.scale_bytes) / 2;
    for (int h = 0; h < halves; ++h) std::memcpy(block + at.d + 2 * h, header + (h * kRows + row) * 2, 2);
    for (int i = 0; i < at.scale_bytes; ++i) block[at.scales + i] = header[(2 * halves + i) * kRows + row];
}

template <int type>
void pack_rows(int64_t k, int rows, const uint8_t* source, uint8_t* group) {
    constexpr Format f = *kFormats[format_index(type)];
    static constexpr uint8_t kNoRow[f.source_bytes] = {};
    const GroupLayout layout(f, k);
    const int64_t supers = layout.blocks / f.blocks;
    for (int64_t s = 0; s < supers; ++s) {
        const uint8_t* block[kRows];
        for (int row = 0; row < kRows; ++row) {
            block[row] = row < rows ? source + (row * supers + s) * f.source_bytes : kNoRow;
            write_header<type>(block[row], row, group + s * f.header_group_bytes());
        }
        for (int j = 0; j < f.blocks; ++j)
            for (int row = 0; row < kRows; row += 4) {
                uint8_t* planes = group + layout.quants + (s * f.blocks + j) * f.block_bytes() + 4 * row;
                Quants q[4];
                for (int i = 0; i < 4; ++i) q[i] = read_quants<type>(block[row + i], j);
                write_plane(f.low, q, planes);
                write_plane(f.high, q, planes + plane_bytes(f.low));
            }
    }
}

template <int type>
void unpack_rows(int64_t k, int rows, const uint8_t* group, uint8_t* source) {
    constexpr Format f = *kFormats[format_index(type)];
    const GroupLayout layout(f, k);
    const int64_t supers = layout.blocks / f.blocks;
    std::memset(source, 0, static_cast<size_t>(rows * supers) * f.source_bytes);
    for (int row = 0; row < rows; ++row)
        for (int64_t s = 0; s < supers; ++s) {
            uint8_t* block = source + (row * supers + s) * f.source_bytes;
            read_header<type>(group + s * f.header_group_bytes(), row, block);
            for (int j = 0; j < f.blocks; ++j) {
                const uint8_t* planes = group + layout.quants + (s * f.blocks + j) * f.block_bytes() + 4 * row;
                Quants q = {};
                read_plane(f.low, planes, q);
                read_plane(f.high, planes + plane_bytes(f.low), q);
                write_quants<type>(q, block, j);
            }
        }
}

}  // namespace

void pack_group(const Format& format, int64_t k, int rows, const uint8_t* source, uint8_t* group) {
    switch (format.type) {
        case kQ4_0.type:
        case kIQ4_NL.type: return pack_rows<kQ4_0.type>(k, rows, source, group);
        case kQ4_1.type: return pack_rows<kQ4_1.type>(k, rows, source, group);
        case kQ5_0.type: return pack_rows<kQ5_0.type>(k, rows, source, group);
        case kQ5_1.type: return pack_rows<kQ5_1.type>(k, rows, source, group);
        case kQ8_0.type: return pack_rows<kQ8_0.type>(k, rows, source, group);
        case kQ4_K.type: return pack_rows<kQ4_K.type>(k, rows, source, group);
        case kQ5_K.type: return pack_rows<kQ5_K.type>(k, rows, source, group);
        default: return pack_rows<kQ6_K.type>(k, rows, source, group);
    }
}

void unpack_group(const Format& format, int64_t k, int rows, const uint8_t* group, uint8_t* source) {
    switch (format.type) {
        case kQ4_0.type:
        case kIQ4_NL.type: return unpack_rows<kQ4_0.type>(k, rows, group, source);
        case kQ4_1.type: return unpack_rows<kQ4_1.type>(k, rows, group, source);
        case kQ5_0.type: return unpack_rows<kQ5_0.type>(k, rows, group, source);
        case kQ5_1.type: return unpack_rows<kQ5_1.type>(k, rows, group, source);
        case kQ8_0.type: return unpack_rows<kQ8_0.type>(k, rows, group, source);
        case kQ4_K.type: return unpack_rows<kQ4_K.type>(k, rows, group, source);
        case kQ5_K.type: return unpack_rows<kQ5_K.type>(k, rows, group, source);
        default: return unpack_rows<kQ6_K.type>(k, rows, group, source);
    }
}

}  // namespace specx
