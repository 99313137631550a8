// From what is known of a candidate to the probability that it is right: counts by cell, with forgetting.
//
// A cell estimates a hazard: P(this candidate is the next token | the candidates before it are not).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// How the rows of the recycle table are ordered, and so what a rank means.
enum class Order : int { kGreedy = 0, kPlain = 1, kCoupled = 2 };

struct Calibration {
    static constexpr double kPriorTrials = 8.0;  // weight of the shipped prior
    static constexpr double kKeep = 0.99;        // what one new trial leaves of the old ones

    // Axes of the cells of suffix candidates: order, place among the suffix candidates, length of the match
    // (1, 2, 3, 4, 5-6, 7-10, 11-20, 21+), what the recycled row says of the token (its best by a clear
    // margin, its best, rank 1-2, rank 3-7, not in it, no row), evidence: of the conversation and of the history
    // each the streak of the most recent occurrence (new, 0, 1, 2, 3), or that it is what followed most often, and
    // not last (less than half the time, more); of the corpus its only occurrence, or the share of the occurrences.
    static constexpr std::array<int, 5> kSuffixShape{3, 3, 8, 6, 20};
    // Axes of the cells of recycled candidates: order, place among the recycled candidates, margin bucket,
    // order of the row - 1, length of the first suffix candidate's match (none, 1, 2-4, 5+).
    static constexpr std::array<int, 5> kRecycleShape{3, 8, 6, 2, 4};
    static constexpr int kSuffixCells = 3 * 3 * 8 * 6 * 20;
    static constexpr int kCells = kSuffixCells + 3 * 8 * 6 * 2 * 4;
    static constexpr double kClearMargin = 1.0;
    static constexpr int kTextEvidence = 7;  // values of the conversation, and of the history
    static constexpr std::array<float, 4> kShares{0.3f, 0.6f, 0.9f, 1.0f};  // of the corpus
    // Margin: own score minus the next best untaken score of the row.
    static constexpr std::array<float, 5> kMargins{0.25f, 0.75f, 1.5f, 3.0f, 5.0f};

    float* counts;       // (kCells, 2): hits, trials
    const float* prior;  // (kCells,)

    double hazard(int cell) const {
        return (kPriorTrials * prior[cell] + counts[2 * cell]) / (kPriorTrials + counts[2 * cell + 1]);
    }

    void score(int cell, bool hit) const {
        float* hits = counts + 2 * cell;
        hits[0] = static_cast<float>(kKeep * hits[0] + (hit ? 1 : 0));
        hits[1] = static_cast<float>(kKeep * hits[1] + 1);
    }

    static int length_bucket(int32_t length) {
        return length <= 4 ? length - 1 : length <= 6 ? 4 : length <= 10 ? 5 : length <= 20 ? 6 : 7;
    }

    // rank is -1 if the row lacks the token, -2 if there is no row; margin is that of the best of the row.
    static int agreement_bucket(int rank, double margin) {
        if (rank == 0) return margin >= kClearMargin ? 0 : 1;
        return rank == -1 ? 4 : rank == -2 ? 5 : rank <= 2 ? 2 : 3;
    }

    static int margin_bucket(float margin) {
        int bucket = 0;
        while (bucket < 5 && margin >= kMargins[static_cast<size_t>(bucket)]) ++bucket;
        return bucket;
    }

    static int recent_evidence(int streak, bool history) { return streak + 1 + (history ? kTextEvidence : 0); }

    static int common_evidence(int32_t count, int32_t followed, bool history) {
        return (2 * count < followed ? 5 : 6) + (history ? kTextEvidence : 0);
    }

    static int corpus_evidence(float share, int32_t occurrences) {
        if (occurrences == 1) return 2 * kTextEvidence;
        int bucket = 0;
        while (bucket < 4 && share >= kShares[static_cast<size_t>(bucket)]) ++bucket;
        return 2 * kTextEvidence + 1 + bucket;
    }

    static int suffix_cell(Order order, int place, int32_t length, int agreement, int evidence) {
        int cell = static_cast<int>(order);
        cell = cell * kSuffixShape[1] + place;
        cell = cell * kSuffixShape[2] + length_bucket(length);
        cell = cell * kSuffixShape[3] + agreement;
        return cell * kSuffixShape[4] + evidence;
    }

    // match is the length of the first suffix candidate's match, 0 if there is none.
    static int recycle_cell(Order order, int place, float margin, int row_order, int32_t match) {
        int cell = static_cast<int>(order);
        cell = cell * kRecycleShape[1] + place;
        cell = cell * kRecycleShape[2] + margin_bucket(margin);
        cell = cell * kRecycleShape[3] + row_order - 1;
        return kSuffixCells + cell * kRecycleShape[4] + (match <= 1 ? match : match <= 4 ? 2 : 3);
    }
};
