#include "foresight.hpp"

#include <algorithm>
#include <stdexcept>

namespace {

constexpr int kToldApart[] = {0, 1, 2, 4, 8};  // claims agreed with; numbers in between count as the next

double shrunk(const double* counts, double prior, double weight) {
    return (weight * prior + counts[0]) / (weight + counts[1]);
}

bool told_apart(int n) { return std::find(std::begin(kToldApart), std::end(kToldApart), n) != std::end(kToldApart); }

template <class T>
std::vector<T> joined(const std::vector<T>& first, const std::vector<T>& second) {
    std::vector<T> all;
    all.reserve(first.size() + second.size());
    all.insert(all.end(), first.begin(), first.end());
    all.insert(all.end(), second.begin(), second.end());
    return all;
}

}  // namespace

Beside BesideCounts::expected(double hazard) const {
    const size_t at = static_cast<size_t>(std::upper_bound(edges, edges + cells - 1, hazard) - edges);
    const double weight = priors[4];
    const double both = hazard * shrunk(right + 4 * at + 2, priors[1], weight);
    const double other = (1 - hazard) * shrunk(right + 4 * at, priors[0], weight);
    const double said = shrunk(agreed + 2 * at, hazard * priors[3] + (1 - hazard) * priors[2], weight);
    return {std::min(std::max(said, both), 1 - other), both + other, both};
}

Claims claims_after(const DraftNodes& draft, const std::vector<int32_t>& path) {
    Claims found;
    int at = -1;
    double above = 1.0;
    size_t depth = 0;
    for (size_t node = 0; node < draft.size(); ++node) {  // children follow their parents, the best first
        if (draft[node].parent != at || (depth < path.size() && draft[node].token != path[depth])) continue;
        const double prob = draft[node].prob;
        if (depth >= path.size()) {
            found.tokens.push_back(draft[node].token);
            found.hazards.push_back(above > 0 ? prob / above : 0.0);
        }
        at = static_cast<int>(node);
        above = prob;
        ++depth;
    }
    return found;
}

Foresight::Foresight(Claims claims, const BesideCounts& counts, double first, double later, std::vector<double> below)
    : claims_(std::move(claims)), first_(first), later_(later), below_(std::move(below)) {
    if (claims_.tokens.size() != claims_.hazards.size())
        throw std::invalid_argument("claimed tokens and hazards differ in length");
    const size_t n = std::min(claims_.hazards.size(), kForeseen);
    expected_.reserve(n);
    for (size_t i = 0; i < n; ++i) expected_.push_back(counts.expected(claims_.hazards[i]));
}

double Foresight::right(int depth) const {
    if (depth < static_cast<int>(expected_.size())) return expected_[static_cast<size_t>(depth)].right;
    return depth ? later_ : first_;
}

int Foresight::worth_checking(int most, double further_ms, double token_ms) const {
    double path = 1.0;
    int n = 0;
    for (; n < most && n < static_cast<int>(expected_.size()); ++n) {
        path *= expected_[static_cast<size_t>(n)].both;
        if (path * token_ms <= further_ms) break;
    }
    return n;
}

std::vector<Foresight::Outcome> Foresight::outcomes(int checked) const {
    std::vector<Outcome> found;
    std::vector<double> agreed;
    double path = 1.0, rest = 0.0;  // probability of having come so far, and of what is not told apart
    const auto then = [&](double next) {
        std::vector<double> hazards = agreed;
        hazards.push_back(next);
        hazards.insert(hazards.end(), below_.begin(), below_.end());
        return hazards;
    };
    for (int n = 0; n <= checked; ++n) {
        if (n >= static_cast<int>(expected_.size())) {
            found.push_back({path + rest, n, then(right(n))});
            return found;
        }
        const Beside& at = expected_[static_cast<size_t>(n)];
        rest += path * (1 - at.said);
        if (told_apart(n)) {
            found.push_back({rest, n, then(at.if_other())});
            rest = 0.0;
        }
        agreed.push_back(at.if_said());
        path *= at.said;
    }
    const size_t end = std::min(claims_.hazards.size(), kForeseen);
    for (size_t i = static_cast<size_t>(checked + 1); i < end; ++i) agreed.push_back(claims_.hazards[i]);
    found.push_back({path + rest, checked + 1, agreed});
    return found;
}

std::vector<double> Foresight::hazards(int checked, int asked) const {
    std::vector<double> found;
    found.reserve(static_cast<size_t>(checked + asked) + below_.size());
    for (int depth = 0; depth < checked + asked; ++depth) {
        double hazard = right(depth);
        if (depth >= asked) {
            const Beside& before = expected_.at(static_cast<size_t>(depth - asked));
            hazard *= before.right > 0 ? before.both / before.right : 0.0;
        }
        found.push_back(hazard);
    }
    found.insert(found.end(), below_.begin(), below_.end());
    return found;
}

std::vector<Foresight::Coming> Foresight::coming(int checked, int asked) const {
    if (checked < 0 || asked < 1 || asked > kMostAsked || checked > static_cast<int>(expected_.size()))
        throw std::invalid_argument("a source is asked at least once, 4,096 times at most, and checks what is claimed");
    if (asked > 1) {
        std::vector<double> all = hazards(checked, asked);
        std::vector<int32_t> tokens(all.size(), kUnknown);
        return {{1.0, std::move(tokens), std::move(all)}};
    }
    std::vector<Coming> found;
    for (Outcome& outcome : outcomes(checked)) {
        const size_t n = outcome.hazards.size();
        const size_t known = outcome.agreed <= checked ? static_cast<size_t>(outcome.agreed) : n;
        std::vector<int32_t> tokens(n, kUnknown);
        std::copy_n(claims_.tokens.begin(), std::min(known, claims_.tokens.size()), tokens.begin());
        found.push_back({outcome.probability, std::move(tokens), std::move(outcome.hazards)});
    }
    return found;
}

DraftNodes Growing::with(const Foresight::Coming& coming) const {
    return merge_chain(draft, joined(tokens, coming.tokens), joined(hazards, coming.hazards), source);
}

namespace {

// Where the chain is all there is.
BestPrefix best_alone(const std::vector<double>& before, const std::vector<double>& coming, const StepCosts& costs) {
    std::vector<double> gains{1.0};
    gains.reserve(before.size() + coming.size() + 1);
    double path = 1.0, least = 1.0;
    for (const std::vector<double>* hazards : {&before, &coming})
        for (const double hazard : *hazards) {
            path *= hazard;
            least = std::min(path, least);
            gains.push_back(gains.back() + static_cast<double>(static_cast<float>(least)));  // as a draft has it
        }
    return best_of_chain(gains, costs);
}

}  // namespace

std::pair<double, double> expected_step(const Foresight& foresight, const Growing& growing, int checked, int asked,
                                        const StepCosts& costs, bool one_leaf) {
    double tokens = 0.0, ms = 0.0;
    for (const Foresight::Coming& coming : foresight.coming(checked, asked)) {
        const BestPrefix best = growing.draft.empty() ? best_alone(growing.hazards, coming.hazards, costs)
                                                      : best_prefix(growing.with(coming), costs, one_leaf);
        tokens += coming.probability * best.gain;
        ms += coming.probability * best.time;
    }
    return {tokens, ms};
}
