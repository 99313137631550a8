#include "recycle_table.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace {

constexpr int kMaxK = 64;

uint64_t context_key(int32_t previous, int32_t token) {
    return static_cast<uint64_t>(static_cast<uint32_t>(previous) + 1u) << 32 |
           (static_cast<uint32_t>(token) + 1u);
}

}  // namespace

template <class T>
RecycleTable::Zeros<T> RecycleTable::zeros(size_t n) {
    void* p = std::calloc(std::max<size_t>(n, 1), sizeof(T));
    if (!p) throw std::bad_alloc();
    return Zeros<T>(static_cast<T*>(p));
}

RecycleTable::RecycleTable(int32_t vocab_size, int k, int contexts)
    : vocab_size_(vocab_size), k_(k), contexts_(1) {
    if (vocab_size < 1 || k < 1 || k > kMaxK || contexts < 1)
        throw std::invalid_argument("a recycle table needs vocab_size >= 1, 1 <= k <= 64, contexts >= 1");
    while (contexts_ < static_cast<size_t>(contexts)) contexts_ *= 2;
    clear();
}

void RecycleTable::clear() {
    const size_t v = static_cast<size_t>(vocab_size_), k = static_cast<size_t>(k_);
    filled_ = zeros<uint8_t>(v);
    ids1_ = zeros<int32_t>(v * k);
    logits1_ = zeros<float>(v * k);
    keys_ = zeros<uint64_t>(contexts_);
    ids2_ = zeros<int32_t>(contexts_ * k);
    logits2_ = zeros<float>(contexts_ * k);
}

size_t RecycleTable::context_slot(int32_t previous, int32_t token) const {
    uint64_t hash = context_key(previous, token) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    return static_cast<size_t>(hash * 0xD6E8FEB86659FD93u >> 32) & (contexts_ - 1);
}

void RecycleTable::check(int32_t previous, int32_t token) const {
    if (token < 0 || token >= vocab_size_ || previous < -1 || previous >= vocab_size_)
        throw std::out_of_range("a token is outside the vocabulary of the recycle table");
}

void RecycleTable::write(int32_t* to_ids, float* to_logits, const int32_t* ids, const float* logits,
                         int n) const {
    std::copy(ids, ids + n, to_ids);
    std::copy(logits, logits + n, to_logits);
    std::fill(to_ids + n, to_ids + k_, -1);
    std::fill(to_logits + n, to_logits + k_, 0.0f);
}

void RecycleTable::update(int32_t previous, int32_t token, const int32_t* ids, const float* logits, int n) {
    check(previous, token);
    n = std::min(n, k_);
    if (n < 1) return;
    const size_t k = static_cast<size_t>(k_), row = static_cast<size_t>(token);
    filled_[row] = 1;
    write(&ids1_[row * k], &logits1_[row * k], ids, logits, n);
    if (previous < 0) return;
    const size_t context = context_slot(previous, token);
    keys_[context] = context_key(previous, token);
    write(&ids2_[context * k], &logits2_[context * k], ids, logits, n);
}

void RecycleTable::update(int32_t previous, int32_t token, const ColumnRow& logits) {
    int32_t ids[kMaxK];
    float values[kMaxK];
    update(previous, token, ids, values, topk(logits, k_, ids, values));
}

RecycleTable::Row RecycleTable::first_order(int32_t token) const {
    const size_t k = static_cast<size_t>(k_), row = static_cast<size_t>(token);
    if (token < 0 || token >= vocab_size_ || !filled_[row]) return {};
    return {&ids1_[row * k], &logits1_[row * k], 1};
}

RecycleTable::Row RecycleTable::lookup(int32_t previous, int32_t token) const {
    if (previous >= 0) {
        const size_t k = static_cast<size_t>(k_), context = context_slot(previous, token);
        if (keys_[context] == context_key(previous, token))
            return {&ids2_[context * k], &logits2_[context * k], 2};
    }
    return first_order(token);
}

std::vector<int32_t> RecycleTable::used() const {
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < vocab_size_; ++token)
        if (filled_[static_cast<size_t>(token)]) tokens.push_back(token);
    return tokens;
}
