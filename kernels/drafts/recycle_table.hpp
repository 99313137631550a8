// Token recycling (Luo et al. 2024): what the target last thought would follow a token, with its logits.
//
// Rows of order 1 are kept for every token, rows of order 2 in a hash table by (previous token, token).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "topk.hpp"

class RecycleTable {
  public:
    struct Row {
        const int32_t* ids = nullptr;   // (k,) best first; -1 from where the row ends
        const float* logits = nullptr;  // (k,)
        int order = 0;                  // 0: there is no row
    };

    RecycleTable(int32_t vocab_size, int k, int contexts);

    int k() const { return k_; }
    int32_t vocab_size() const { return vocab_size_; }

    // The best k of a row of V logits follow `token`; `previous` is the token before it, or -1.
    void update(int32_t previous, int32_t token, const ColumnRow& logits);
    // The same with the best n known already, by decreasing logit.
    void update(int32_t previous, int32_t token, const int32_t* ids, const float* logits, int n);

    // The row of (previous, token), else that of token alone.
    Row lookup(int32_t previous, int32_t token) const;

    // Tokens that have a row of order 1, in increasing order.
    std::vector<int32_t> used() const;
    Row first_order(int32_t token) const;
    void clear();

  private:
    // calloc: pages nobody wrote to take no memory.
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    template <class T>
    using Zeros = std::unique_ptr<T[], Free>;
    template <class T>
    static Zeros<T> zeros(size_t n);

    size_t context_slot(int32_t previous, int32_t token) const;
    void check(int32_t previous, int32_t token) const;
    void write(int32_t* to_ids, float* to_logits, const int32_t* ids, const float* logits, int n) const;

    int32_t vocab_size_;
    int k_;
    size_t contexts_;  // a power of two
    Zeros<uint8_t> filled_;
    Zeros<int32_t> ids1_, ids2_;
    Zeros<float> logits1_, logits2_;
    Zeros<uint64_t> keys_;  // of order 2; 0 is free
};
