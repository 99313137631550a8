#include "asked_chain.hpp"

#include <algorithm>
#include <stdexcept>

namespace {

constexpr double kBelowRate = 0.05;  // weight of a new one in the running mean

}  // namespace

void Below::observe(const Claims& claims) {
    double path = 1.0, before = 1.0;
    const double rate = std::max(kBelowRate, 1.0 / ++seen_);
    hazards_.clear();
    for (size_t n = 0; n < kDepth; ++n) {
        path *= n < claims.hazards.size() ? claims.hazards[n] : 0.0;
        paths_[n] += rate * (path - paths_[n]);
        if (paths_[n] <= 0) continue;
        hazards_.push_back(paths_[n] / before);
        before = paths_[n];
    }
}

void AskedChain::begin(const ModelCounts& counts, bool noisy, DraftNodes free, bool one_leaf) {
    counts_ = counts;
    noisy_ = noisy;
    one_leaf_ = one_leaf;
    free_ = std::move(free);
    place_ = ModelCounts::first(noisy, free_.empty() ? 0.0 : static_cast<double>(free_.front().prob));
    under_.clear();
    tokens_.clear();
    hazards_.clear();
    given_.clear();
}

void AskedChain::check_begun() const {
    if (!counts_.cells) throw std::invalid_argument("no step has begun");
}

Claims AskedChain::claims() const { return under_.empty() ? claims_after(free_, tokens_) : claims_after(under_, {}); }

std::pair<Foresight, Growing> AskedChain::foresee(const std::vector<const AskedChain*>& others) const {
    check_begun();
    Foresight foresight(claims(), counts_.beside_free(noisy_), counts_.forecast(place_), counts_.later(noisy_),
                        below_.hazards());
    return {std::move(foresight), {one_leaf_ ? DraftNodes{} : merged(others), tokens_, hazards_, source_}};
}

bool AskedChain::add(const std::vector<int32_t>& tokens, const std::vector<double>& margins) {
    check_begun();
    if (tokens.size() != margins.size()) throw std::invalid_argument("tokens and margins differ in length");
    const Claims claimed = claims();
    for (size_t i = 0; i < tokens.size(); ++i) {
        const bool said = i < claimed.tokens.size();
        Given given{{}, place_, said ? claimed.tokens[i] : Foresight::kUnknown, said ? claimed.hazards[i] : 0.0};
        const auto agreement = !said                         ? ModelCounts::kSilent
                               : given.claimed == tokens[i] ? ModelCounts::kAgrees
                                                             : ModelCounts::kOther;
        given.cell = ModelCounts::cell(noisy_, margins[i], static_cast<int>(tokens_.size()) + 1, agreement);
        tokens_.push_back(tokens[i]);
        hazards_.push_back(counts_.hazard(given.cell));
        given_.push_back(given);
        place_ = ModelCounts::following(noisy_, margins[i]);
        if (said) counts_.score_said(noisy_, given.sure, given.claimed == tokens[i]);
    }
    under_.clear();
    return !tokens_.empty() && claims_after(free_, tokens_).tokens.empty();
}

void AskedChain::go_on(DraftNodes below) {
    under_ = std::move(below);
    below_.observe(claims_after(under_, {}));
}

DraftNodes AskedChain::draft(const std::vector<const AskedChain*>& others) const {
    const DraftNodes whole = merge_chain(merged(others), tokens_, hazards_, source_);
    return under_.empty() ? whole : graft(whole, tokens_, under_);
}

std::vector<std::pair<double, bool>> AskedChain::score(const std::vector<int32_t>& emitted) {
    std::vector<std::pair<double, bool>> scored;
    for (size_t i = 0; i < std::min(tokens_.size(), emitted.size()); ++i) {
        const bool right = tokens_[i] == emitted[i];
        const Given& given = given_[i];
        counts_.score(given.cell, given.place, right);
        if (given.claimed != Foresight::kUnknown)
            counts_.score_beside(noisy_, given.sure, given.claimed == emitted[i], right);
        scored.emplace_back(hazards_[i], right);
        if (!right) break;
    }
    free_.clear();
    under_.clear();
    tokens_.clear();
    hazards_.clear();
    given_.clear();
    return scored;
}

DraftNodes AskedChain::merged(const std::vector<const AskedChain*>& others) const {
    DraftNodes draft = free_;
    for (const AskedChain* other : others)
        if (!other->tokens_.empty()) draft = merge_chain(draft, other->tokens_, other->hazards_, other->source_);
    return draft;
}
