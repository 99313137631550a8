// What a source that costs time is expected to give before it is asked, beside what the free drafters say.
// Reference: specx/kernels/reference/foresight.py.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "merge.hpp"
#include "objective.hpp"

// What is expected of a source where the free drafters propose a token.
struct Beside {
    double said, right, both;  // that it says that token, that it is right, and both

    double if_said() const { return said > 0 ? both / said : 0.0; }
    double if_other() const { return said < 1 ? (right - both) / (1 - said) : 0.0; }
};

// How often a source was right beside the free drafters, and said what they did: counts that are learned
// elsewhere, and what they lean on.
struct BesideCounts {
    const double* right;   // (cells, 2, 2) hits and trials, by whether the free drafters were right
    const double* agreed;  // (cells, 2) hits and trials of saying their token
    const double* edges;   // (cells - 1,) hazards of their token from which on the next cell applies
    size_t cells;
    const double* priors;  // right where they are not, and where they are; the same of saying it; their weight

    // Where their token is right with the probability `hazard`.
    Beside expected(double hazard) const;
};

// Where a path in a draft leads on: tokens, and the hazard of each.
struct Claims {
    std::vector<int32_t> tokens;
    std::vector<double> hazards;
};

// The most promising way on in `draft` below the tokens of `path`; nothing if they are not in it.
Claims claims_after(const DraftNodes& draft, const std::vector<int32_t>& path);

class Foresight {
  public:
    static constexpr size_t kForeseen = 16;  // further tokens that a chain is forecast with at once
    static constexpr int kMostAsked = 4096;  // beyond it a chain takes memory and says nothing
    static constexpr int32_t kUnknown = -1;  // a token that is not known yet

    struct Outcome {
        double probability;
        int agreed;                   // how many of the claimed tokens the source says
        std::vector<double> hazards;  // of the tokens after its chain then
    };
    // What may come: tokens after the chain, as far as they are known.
    struct Coming {
        double probability;
        std::vector<int32_t> tokens;
        std::vector<double> hazards;
    };

    // first, later: hazards of the next token, and of one further on, where nothing is claimed. below: of what
    // the free drafters say after a token of the source that they did not.
    Foresight(Claims claims, const BesideCounts& counts, double first, double later, std::vector<double> below);

    const Claims& claims() const { return claims_; }
    // How likely the next token is right.
    double likely() const { return right(0); }
    // How many of the first `most` claims are worth checking in one call: another one costs `further_ms`, and
    // spares a call of `token_ms` if it and all before it are right and what the source says.
    int worth_checking(int most, double further_ms, double token_ms) const;
    // Of one call that checks so many claims.
    std::vector<Outcome> outcomes(int checked) const;
    // Of the tokens there will be after `asked` calls, the first of which checks so many claims: a call gives
    // one token, and the first another for each claim that the source agrees with.
    std::vector<double> hazards(int checked, int asked) const;
    std::vector<Coming> coming(int checked, int asked) const;

  private:
    double right(int depth) const;

    Claims claims_;
    std::vector<Beside> expected_;
    double first_, later_;
    std::vector<double> below_;
};

// The chain that a source has given in this step, and the draft that it is merged into.
struct Growing {
    DraftNodes draft;
    std::vector<int32_t> tokens;
    std::vector<double> hazards;
    uint8_t source;

    // The draft with the chain and what may come after it.
    DraftNodes with(const Foresight::Coming& coming) const;
};

// Tokens and milliseconds that are expected of the step if the source is asked `asked` times.
std::pair<double, double> expected_step(const Foresight& foresight, const Growing& growing, int checked, int asked,
                                        const StepCosts& costs, bool one_leaf);
