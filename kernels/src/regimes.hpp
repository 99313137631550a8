// What real steps say about the measured table of step times: outliers, regimes, and slow drifts.
// Reference, and the reasons: specx/kernels/reference/regimes.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

// Present milliseconds of a step by width, 0 to `max_width`, and depth.
class Regimes {
  public:
    static constexpr double kClip = 2.0;           // a step more than this many times off is an outlier
    static constexpr size_t kInARow = 3;           // unless it was as many in a row
    static constexpr double kStepRate = 0.15;      // weight of one real step in the running estimate of its width
    static constexpr double kRegimeRate = 0.1;     // and in the estimate of the machine's present speed
    static constexpr double kWideRegimeRate = 0.05;  // weight in it of a step that is no single token
    static constexpr double kSpeedDecay = 0.003;   // per step: what one width says of all others is forgotten
    static constexpr double kContentionRate = 0.1;  // weight of a dear wide step in how costly wide steps are
    static constexpr double kReliefRate = 0.3;     // and of one that is cheaper
    static constexpr double kDecay = 0.001;        // per step: what was learned of a width is forgotten, too
    static constexpr int kDecayEvery = 16;         // steps decay at once

    using Table = std::vector<double>;  // by width

    explicit Regimes(int max_width);

    // A new table by depth; without one, a step costs as much as it has tokens. What real steps said of the depths that it has in common with the one before is kept.
    void rebase(const std::map<int64_t, Table>& measured);
    // A new measurement: what was thought of the machine as a whole is void.
    void reset();

    // Present milliseconds in a context of so many tokens, by width.
    Table costs(int64_t length) const;
    // The same of several contexts, added up.
    Table total_costs(const std::vector<int64_t>& lengths) const;
    // The same of one width.
    double cost(int n, int64_t length) const;
    // The same as it was measured, whatever real steps take now.
    double quiet(int n, int64_t length) const;
    // The measured depth that speaks most for a length.
    int64_t nearest(int64_t length) const;
    // What real steps have made of a width's time, by depth: a factor.
    std::map<int64_t, double> corrections(int n) const;

    // A real step took so long. Returns what the whole table was off by: a factor below 1, with which all that was
    // measured has been multiplied, as the machine cannot be too fast; else 1.
    double observe(int n, int64_t length, double ms);

  private:
    struct Depth {
        int64_t tokens;
        Table measured, present;
    };
    // The two depths that speak for a length, and how much each does.
    struct Weights {
        size_t low, high;
        double below, above;
    };

    Weights weigh(int64_t length) const;
    double expected(int n, const Weights& by) const;
    void drift(int n, const Weights& by, double ratio);
    void decay(const Weights& by);
    void note_wide(int n, double ratio);
    double move(int n, const Weights& by, double ms);
    void end_contention(int n);
    void scale(double factor);
    void begin_regime(double speed);
    Table unknown() const;
    void check(int n) const;

    int max_width_;
    std::vector<Depth> depths_;  // ascending
    double speed_ = 1.0;         // present time of any step relative to the present tables
    Table contention_;           // present time of wide steps, beyond that of all; at least 1
    int narrowest_;              // width that steps have had
    int64_t steps_ = 0;
    std::map<int, std::vector<double>> outliers_;      // by width, its latest steps if all were off to one side
    std::vector<std::pair<int, double>> wide_outliers_;  // the latest wide steps, if all were far too costly
    std::set<int> moved_;  // widths that turned out far off since single tokens last did
};
