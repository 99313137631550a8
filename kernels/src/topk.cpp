#include "topk.hpp"

#include <cstring>

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

SPECX_VECTOR_CLONES
void column_maxima(const float* x, int n, int depth, float* maxima) {
    const float lowest = -std::numeric_limits<float>::infinity();
    for (int begin = 0; begin < n; begin += depth * kLanes, maxima += kLanes) {
        const int end = std::min(n, begin + depth * kLanes);
        // Two running maxima, since each waits for the one before; four were not faster.
        Lanes even = lowest - Lanes{}, odd = even, next;
        int i = begin;
        for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
            std::memcpy(&next, x + i, sizeof next);
            even = next > even ? next : even;
            std::memcpy(&next, x + i + kLanes, sizeof next);
            odd = next > odd ? next : odd;
        }
        even = odd > even ? odd : even;
        std::memcpy(maxima, &even, sizeof even);
        for (; i < end; ++i) {
            float& best = maxima[(i - begin) % kLanes];
            best = x[i] > best ? x[i] : best;
        }
    }
}
