#include "pack.hpp"

#include <cstring>

namespace specx {
namespace {

// The quants of one row of a block of 32, a byte each: word c is column c. What follows works on the four bytes
// of a (little-endian) word at once.
struct Quants {
    uint32_t column[kColumns];
};

constexpr uint32_t kNibbles = 0x0f0f0f0f, kPairs = 0x03030303, kBits = 0x01010101;

uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, sizeof word); }

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

// Bit 4 of the 32 quants of a Q5_0 or Q5_1 block: bit i of one little-endian word is that of quant i. Spread to
// one byte each, and gathered again.
uint32_t spread_bits(const uint8_t* bits, int column) {
    const uint32_t four = bits[column / 2] >> (4 * (column % 2));
    return (four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25;
}

uint32_t gather_bits(uint32_t word) {
    return (word >> 4 & 1) | (word >> 11 & 2) | (word >> 18 & 4) | (word >> 25 & 8);
}

// The source's order of nibbles: which word of the low part, and which half of its bytes, column c of block j
// is in; likewise for the pairs and bits above them.
struct Place {
    int word, shift;
};

template <int type>
Place low_place(int j, int c) {
    if constexpr (type == kQ4_K.type || type == kQ5_K.type) return {j / 2 * 8 + c, j % 2 * 4};
    if constexpr (type == kQ6_K.type) return {j / 4 * 16 + j % 2 * 8 + c, j % 4 / 2 * 4};
    return {c % 4, c / 4 * 4};
}

template <int type>
Quants read_quants(const uint8_t* block, int j) {
    constexpr Source at = source_of(type);
    Quants q;
    for (int c = 0; c < kColumns; ++c) {
        if constexpr (type == kQ8_0.type) {
            q.column[c] = load_word(block + at.low + 4 * c);
            continue;
        }
        const Place low = low_place<type>(j, c);
        q.column[c] = load_word(block + at.low + 4 * low.word) >> low.shift & kNibbles;
        if constexpr (type == kQ5_0.type || type == kQ5_1.type)
            q.column[c] |= spread_bits(block + at.high, c);
        if constexpr (type == kQ5_K.type) q.column[c] |= (load_word(block + at.high + 4 * c) >> j & kBits) << 4;
        if constexpr (type == kQ6_K.type)
            q.column[c] |= (load_word(block + at.high + j / 4 * 32 + 4 * c) >> j % 4 * 2 & kPairs) << 4;
    }
    return q;
}

// Adds the quants to a block that was zeroed before.
template <int type>
void write_quants(const Quants& q, uint8_t* block, int j) {
    constexpr Source at = source_of(type);
    const auto add = [](uint8_t* p, uint32_t bits) { store_word(p, load_word(p) | bits); };
    for (int c = 0; c < kColumns; ++c) {
        if constexpr (type == kQ8_0.type) {
            store_word(block + at.low + 4 * c, q.column[c]);
            continue;
        }
        const Place low = low_place<type>(j, c);
        add(block + at.low + 4 * low.word, (q.column[c] & kNibbles) << low.shift);
        if constexpr (type == kQ5_0.type || type == kQ5_1.type)
            block[at.high + c / 2] |= static_cast<uint8_t>(gather_bits(q.column[c]) << (4 * (c % 2)));
        if constexpr (type == kQ5_K.type) add(block + at.high + 4 * c, (q.column[c] >> 4 & kBits) << j);
        if constexpr (type == kQ6_K.type)
            add(block + at.high + j / 4 * 32 + 4 * c, (q.column[c] >> 4 & kPairs) << j % 4 * 2);
    }
}

// One row of one plane, to and from the planes of a packed block. `plane` points to the row's first word.
void write_plane(Plane plane, const Quants& q, uint8_t* p) {
    const uint32_t* w = q.column;
    uint32_t word[2] = {0, 0};
    switch (plane) {
        case Plane::bytes:
            for (int c = 0; c < 8; ++c) store_word(p + c * kColumnBytes, w[c]);
            break;
        case Plane::nibbles:
            for (int c = 0; c < 4; ++c)
                store_word(p + c * kColumnBytes, (w[c] & kNibbles) | (w[c + 4] & kNibbles) << 4);
            break;
        case Plane::pairs:
            for (int c = 0; c < 8; ++c) word[c / 4] |= (w[c] >> 4 & kPairs) << c % 4 * 2;
            for (int i = 0; i < 2; ++i) store_word(p + i * kColumnBytes, word[i]);
            break;
        case Plane::bits:
            for (int c = 0; c < 8; ++c) word[0] |= (w[c] >> 4 & kBits) << c;
            store_word(p, word[0]);
            break;
        case Plane::none: break;
    }
}

void read_plane(Plane plane, const uint8_t* p, Quants& q) {
    uint32_t* w = q.column;
    switch (plane) {
        case Plane::bytes:
            for (int c = 0; c < 8; ++c) w[c] = load_word(p + c * kColumnBytes);
            break;
        case Plane::nibbles:
            for (int c = 0; c < 8; ++c) w[c] = load_word(p + c % 4 * kColumnBytes) >> c / 4 * 4 & kNibbles;
            break;
        case Plane::pairs:
            for (int c = 0; c < 8; ++c) w[c] |= (load_word(p + c / 4 * kColumnBytes) >> c % 4 * 2 & kPairs) << 4;
            break;
        case Plane::bits:
            for (int c = 0; c < 8; ++c) w[c] |= (load_word(p) >> c & kBits) << 4;
            break;
        case Plane::none: break;
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
    const GroupLayout layout(f, k);
    if (rows < kRows) std::memset(group, 0, layout.group_bytes);
    const int64_t supers = layout.blocks / f.blocks;
    for (int64_t s = 0; s < supers; ++s)
        for (int row = 0; row < rows; ++row) {
            const uint8_t* block = source + (row * supers + s) * f.source_bytes;
            write_header<type>(block, row, group + s * f.header_group_bytes());
            for (int j = 0; j < f.blocks; ++j) {
                uint8_t* planes = group + layout.quants + (s * f.blocks + j) * f.block_bytes() + 4 * row;
                const Quants q = read_quants<type>(block, j);
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
