#include "topk.hpp"

#include <cstring>

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

SPECX_VECTOR_CLONES
void column_maxima(const float* x, int n, int depth, float* maxima) {
    const float lowest = -std::numeric_limits<float>::infinity();
    for (int begin = 0; begin < n; begin += depth * kLanes, maxima += kLanes) {
        const int end = std::min(n, begin + depth * kLanes);
        Lanes best = lowest - Lanes{}, next;  // one is enough: two or four running maxima were not faster
        int i = begin;
        for (; i + kLanes <= end; i += kLanes) {
            std::memcpy(&next, x + i, sizeof next);
            best = next > best ? next : best;
        }
        std::memcpy(maxima, &best, sizeof best);
        for (; i < end; ++i) {
            float& last = maxima[(i - begin) % kLanes];
            last = x[i] > last ? x[i] : last;
        }
    }
}
