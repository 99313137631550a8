#include "topk.hpp"

#include <cstring>

// Of 16 bytes, which every processor has: GCC takes wider ones apart into single floats, kept in memory, where
// it compiles for one that does not have them, and a row then takes ten times as long.
typedef float Quad __attribute__((vector_size(16)));
constexpr int kQuads = kLanes / 4;

void column_maxima(const float* x, int n, int depth, float* maxima) {
    const float lowest = -std::numeric_limits<float>::infinity();
    for (int begin = 0; begin < n; begin += depth * kLanes, maxima += kLanes) {
        const int end = std::min(n, begin + depth * kLanes);
        Quad best[kQuads], next;  // one set is enough: two or four running maxima were not faster
        for (Quad& quad : best) quad = lowest - Quad{};
        int i = begin;
        for (; i + kLanes <= end; i += kLanes) {
            for (int q = 0; q < kQuads; ++q) {
                std::memcpy(&next, x + i + 4 * q, sizeof next);
                best[q] = next > best[q] ? next : best[q];
            }
        }
        std::memcpy(maxima, best, sizeof best);
        for (; i < end; ++i) {
            float& last = maxima[(i - begin) % kLanes];
            last = x[i] > last ? x[i] : last;
        }
    }
}
