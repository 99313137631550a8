// What a source that costs time has given in the present step, beside the free draft.
// Reference: specx/kernels/reference/asked_chain.py.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "foresight.hpp"
#include "merge.hpp"
#include "model_counts.hpp"

// How sure the free drafters are, on average, below tokens of a source that they did not claim.
class Below {
  public:
    static constexpr size_t kDepth = 4;

    void observe(const Claims& claims);
    // Of the next tokens, each given that those before it are right; none where nothing is ever said.
    const std::vector<double>& hazards() const { return hazards_; }

  private:
    std::array<double, kDepth> paths_{};
    int seen_ = 0;
    std::vector<double> hazards_;
};

class AskedChain {
  public:
    AskedChain(Below& below, uint8_t source) : below_(below), source_(source) {}

    // A step begins with the free draft. `one_leaf`: only chains are possible.
    void begin(const ModelCounts& counts, bool noisy, DraftNodes free, bool one_leaf);

    const std::vector<int32_t>& tokens() const { return tokens_; }
    // What the free drafters claim comes next.
    Claims claims() const;
    // What is expected of the next calls, and what it would be merged into beside `others`.
    std::pair<Foresight, Growing> foresee(const std::vector<const AskedChain*>& others) const;

    // The source gave these tokens, each so far ahead of the runner-up. Returns whether there is a chain now, and
    // the free draft says nothing below it.
    bool add(const std::vector<int32_t>& tokens, const std::vector<double>& margins);
    // The free drafters say this below the chain.
    void go_on(DraftNodes below);
    // All of it as one draft.
    DraftNodes draft(const std::vector<const AskedChain*>& others) const;

    // These tokens were emitted: learns up to the first that was wrong, and returns how likely each was thought
    // right, and whether it was. The chain is empty then.
    std::vector<std::pair<double, bool>> score(const std::vector<int32_t>& emitted);

  private:
    struct Given {
        ModelCounts::Cell cell;
        ModelCounts::Place place;
        int32_t claimed;  // by the free drafters, kUnknown for nothing
        double sure;      // how sure they were
    };

    void check_begun() const;
    DraftNodes merged(const std::vector<const AskedChain*>& others) const;

    Below& below_;
    uint8_t source_;
    ModelCounts counts_{};
    bool noisy_ = false, one_leaf_ = true;
    DraftNodes free_, under_;  // under_: what the free drafters say below the chain, if the draft says nothing
    ModelCounts::Place place_{};  // where the next token is forecast from
    std::vector<int32_t> tokens_;
    std::vector<double> hazards_;
    std::vector<Given> given_;
};
