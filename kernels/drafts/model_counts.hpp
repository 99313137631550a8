// How often the tokens of a source that costs time are right: hits and trials that are learned while drafting.
// Reference: specx/kernels/reference/model_counts.py.
#pragma once

#include <array>
#include <cstddef>

#include "foresight.hpp"

struct ModelCounts {
    static constexpr int kOrders = 2;  // greedy, with noise
    static constexpr std::array<double, 9> kMargins = {0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0};
    static constexpr std::array<int, 2> kDepths = {2, 4};  // from which on the next cell applies
    static constexpr std::array<double, 3> kConfidence = {0.01, 0.4, 0.8};  // of the free drafters' first token
    static constexpr std::array<double, 3> kSure = {0.4, 0.7, 0.9};         // of any token of theirs
    static constexpr int kBuckets = 10, kDeep = 3, kAgreements = 3, kSureCells = 4;
    static constexpr int kPlaces = 4 + kBuckets;  // after nothing, by confidence; after a token, by its margin
    static constexpr std::array<double, 5> kBesidePriors = {0.4, 0.85, 0.2, 0.85, 8.0};

    // What the free drafters propose at the place of a token.
    enum Agreement { kSilent, kOther, kAgrees };

    struct Cell {
        int order, margin, depth, agreement;
    };
    struct Place {
        int order, at;
    };

    // Hits and trials; the last axis of every array.
    double* cells;      // (orders, buckets, deep, agreements)
    double* margins;    // (orders, buckets): over depths and agreement
    double* forecasts;  // (orders, places)
    double* all;        // (orders)
    double* beside;     // (orders, sure cells, 2), the last: whether the free drafters are right
    double* agreed;     // (orders, sure cells)
    double* tokens;     // not decayed

    static Cell cell(bool noisy, double margin, int depth, Agreement agreement);
    static Place first(bool noisy, double free);
    static Place following(bool noisy, double margin);

    double hazard(const Cell& cell) const;
    double forecast(const Place& place) const;
    double later(bool noisy) const;
    BesideCounts beside_free(bool noisy) const;

    void score(const Cell& cell, const Place& place, bool right) const;
    void score_beside(bool noisy, double free, bool free_right, bool right) const;
    void score_said(bool noisy, double free, bool said) const;
};
