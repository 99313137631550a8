#include "model_counts.hpp"

#include <algorithm>
#include <cmath>

namespace {

constexpr double kPriorTrials = 8.0, kKeep = 0.99;       // as in calibration.hpp
constexpr double kPlaceTrials = 4.0, kPlaceKeep = 0.98;  // of one place, which leans on all of them
// Before anything is seen: log odds that grow with the margin, by what the free drafters say.
constexpr double kIntercept = -0.2, kSlope = 0.8, kRight = 0.7;
constexpr double kAgreementOdds[] = {0.0, -0.4, 1.2};

template <class Edges, class Value>
int bucket(const Edges& edges, Value value) {
    return static_cast<int>(std::upper_bound(edges.begin(), edges.end(), value) - edges.begin());
}

double mean(const double* counts, double prior, double weight = kPriorTrials) {
    return (weight * prior + counts[0]) / (weight + counts[1]);
}

void count(double* counts, bool right, double keep) {
    counts[0] = keep * counts[0] + right;
    counts[1] = keep * counts[1] + 1;
}

double logistic(double odds) { return 1 / (1 + std::exp(-odds)); }

double log_odds(double p) {
    p = std::min(std::max(p, 1e-4), 1 - 1e-4);
    return std::log(p / (1 - p));
}

// The hazard of a margin's bucket, from its lower edge.
double prior(int margin) {
    return logistic(kIntercept + kSlope * (margin ? ModelCounts::kMargins[static_cast<size_t>(margin - 1)] : 0.0));
}

size_t at(const ModelCounts::Cell& cell) {
    return 2 * static_cast<size_t>(
                   ((cell.order * ModelCounts::kBuckets + cell.margin) * ModelCounts::kDeep + cell.depth) *
                       ModelCounts::kAgreements +
                   cell.agreement);
}

size_t margin_at(const ModelCounts::Cell& cell) {
    return 2 * static_cast<size_t>(cell.order * ModelCounts::kBuckets + cell.margin);
}

size_t place_at(const ModelCounts::Place& place) {
    return 2 * static_cast<size_t>(place.order * ModelCounts::kPlaces + place.at);
}

size_t sure_at(bool noisy, double free) {
    return static_cast<size_t>(noisy * ModelCounts::kSureCells + bucket(ModelCounts::kSure, free));
}

}  // namespace

ModelCounts::Cell ModelCounts::cell(bool noisy, double margin, int depth, Agreement agreement) {
    return {noisy, bucket(kMargins, margin), bucket(kDepths, depth), agreement};
}

ModelCounts::Place ModelCounts::first(bool noisy, double free) { return {noisy, bucket(kConfidence, free)}; }

ModelCounts::Place ModelCounts::following(bool noisy, double margin) {
    return {noisy, static_cast<int>(kConfidence.size()) + 1 + bucket(kMargins, margin)};
}

double ModelCounts::hazard(const Cell& cell) const {
    const double pooled = mean(margins + margin_at(cell), prior(cell.margin));
    return mean(cells + at(cell), logistic(log_odds(pooled) + kAgreementOdds[cell.agreement]));
}

double ModelCounts::forecast(const Place& place) const {
    return mean(forecasts + place_at(place), later(place.order), kPlaceTrials);
}

double ModelCounts::later(bool noisy) const { return mean(all + 2 * noisy, kRight); }

BesideCounts ModelCounts::beside_free(bool noisy) const {
    return {beside + noisy * kSureCells * 4, agreed + noisy * kSureCells * 2, kSure.data(), kSureCells,
            kBesidePriors.data()};
}

void ModelCounts::score(const Cell& cell, const Place& place, bool right) const {
    count(tokens, right, 1.0);
    count(cells + at(cell), right, kKeep);
    count(margins + margin_at(cell), right, kKeep);
    count(forecasts + place_at(place), right, kPlaceKeep);
    count(all + 2 * place.order, right, kKeep);
}

void ModelCounts::score_beside(bool noisy, double free, bool free_right, bool right) const {
    count(beside + 4 * sure_at(noisy, free) + 2 * free_right, right, kKeep);
}

void ModelCounts::score_said(bool noisy, double free, bool said) const {
    count(agreed + 2 * sure_at(noisy, free), said, kKeep);
}
