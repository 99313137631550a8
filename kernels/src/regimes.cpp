#include "regimes.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "arrays.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// A line through points of rising x, level outside of them.
double interpolated(double at, const std::vector<std::pair<double, double>>& points) {
    if (at <= points.front().first) return points.front().second;
    for (size_t i = 1; i < points.size(); ++i) {
        const auto& [x0, y0] = points[i - 1];
        const auto& [x1, y1] = points[i];
        if (at < x1) return (y1 - y0) / (x1 - x0) * (at - x0) + y0;
    }
    return points.back().second;
}

}  // namespace

Regimes::Regimes(int max_width) : max_width_(max_width), contention_(), narrowest_(max_width) {
    if (max_width < 1) throw std::invalid_argument("the widest step has at least one token");
    contention_.assign(static_cast<size_t>(max_width) + 1, 1.0);
}

void Regimes::rebase(const std::map<int64_t, Table>& measured) {
    std::vector<Depth> depths;
    for (const auto& [tokens, table] : measured) {
        if (table.size() != contention_.size()) throw std::invalid_argument("a table has another width");
        Depth made{tokens, table, table};
        for (const Depth& known : depths_)
            if (known.tokens == tokens)
                for (size_t n = 0; n < table.size(); ++n) made.present[n] *= known.present[n] / known.measured[n];
        depths.push_back(std::move(made));
    }
    depths_ = std::move(depths);
}

void Regimes::reset() {
    std::fill(contention_.begin(), contention_.end(), 1.0);
    begin_regime(1.0);
}

Regimes::Weights Regimes::weigh(int64_t length) const {
    if (depths_.empty()) throw std::invalid_argument("no depth was measured");
    size_t high = 0;
    while (high + 1 < depths_.size() && depths_[high].tokens <= length) ++high;
    const size_t low = high > 0 ? high - 1 : 0;
    if (low == high || length <= depths_[low].tokens) return {low, low, 1.0, 0.0};
    const double share = static_cast<double>(length - depths_[low].tokens) /
                         static_cast<double>(depths_[high].tokens - depths_[low].tokens);
    if (share > 1.0) {  // beyond the deepest, along its slope: a noisy one must not be followed downwards
        const Table &above = depths_[high].present, &below = depths_[low].present;
        for (size_t n = 0; n < above.size(); ++n)
            if (above[n] < below[n]) return {high, high, 1.0, 0.0};
    }
    return {low, high, 1.0 - share, share};
}

double Regimes::expected(int n, const Weights& by) const {
    const size_t i = static_cast<size_t>(n);
    const double mean = depths_[by.low].present[i] * by.below + depths_[by.high].present[i] * by.above;
    return mean * speed_ * contention_[i];
}

Regimes::Table Regimes::costs(int64_t length) const {
    if (depths_.empty()) return unknown();
    const Weights by = weigh(length);
    const Table &low = depths_[by.low].present, &high = depths_[by.high].present;
    Table found(contention_.size());
    for (size_t n = 0; n < found.size(); ++n)
        found[n] = (low[n] * (by.below * speed_) + high[n] * (by.above * speed_)) * contention_[n];
    return found;
}

Regimes::Table Regimes::total_costs(const std::vector<int64_t>& lengths) const {
    if (depths_.empty()) {
        Table found = unknown();
        for (double& ms : found) ms *= static_cast<double>(lengths.size());
        return found;
    }
    std::vector<double> shares(depths_.size(), 0.0);
    for (const int64_t length : lengths) {
        const Weights by = weigh(length);
        shares[by.low] += by.below;
        shares[by.high] += by.above;
    }
    Table found(contention_.size(), 0.0);
    for (size_t i = 0; i < shares.size(); ++i)
        for (size_t n = 0; n < found.size(); ++n) found[n] += depths_[i].present[n] * (shares[i] * speed_);
    for (size_t n = 0; n < found.size(); ++n) found[n] *= contention_[n];
    return found;
}

double Regimes::cost(int n, int64_t length) const {
    check(n);
    return depths_.empty() ? n : expected(n, weigh(length));
}

double Regimes::quiet(int n, int64_t length) const {
    check(n);
    if (depths_.empty()) return n;
    const Weights by = weigh(length);
    const size_t i = static_cast<size_t>(n);
    return depths_[by.low].measured[i] * by.below + depths_[by.high].measured[i] * by.above;
}

int64_t Regimes::nearest(int64_t length) const {
    const Weights by = weigh(length);
    return depths_[by.above > by.below ? by.high : by.low].tokens;
}

std::map<int64_t, double> Regimes::corrections(int n) const {
    check(n);
    const size_t i = static_cast<size_t>(n);
    std::map<int64_t, double> found;
    for (const Depth& depth : depths_) found[depth.tokens] = depth.present[i] / depth.measured[i];
    return found;
}

double Regimes::observe(int n, int64_t length, double ms) {
    check(n);
    const Weights by = weigh(length);
    double factor = 1.0;
    narrowest_ = std::min(narrowest_, n);
    if (++steps_ % kDecayEvery == 0) decay(by);
    const double thought = expected(n, by), ratio = std::max(ms, 1e-6) / thought;
    if (ratio >= 1 / kClip && ratio <= kClip) {
        drift(n, by, ratio);
    } else {
        std::vector<double>& seen = outliers_[n];
        const auto other = [&](double r) { return (r > 1) != (ratio > 1); };
        seen.erase(std::remove_if(seen.begin(), seen.end(), other), seen.end());
        seen.push_back(ratio);
        if (seen.size() >= kInARow) {
            const double least = ratio > 1 ? *std::min_element(seen.begin(), seen.end())
                                           : *std::max_element(seen.begin(), seen.end());
            factor = move(n, by, least * thought);
        } else if (n != narrowest_) {
            note_wide(n, ratio);
        }
    }
    speed_ = std::pow(speed_, 1 - kSpeedDecay);
    return factor;
}

// A step about as costly as expected.
void Regimes::drift(int n, const Weights& by, double ratio) {
    outliers_.erase(n);
    const size_t i = static_cast<size_t>(n);
    depths_[by.low].present[i] *= std::pow(ratio, kStepRate * std::min(by.below, 1.0));
    depths_[by.high].present[i] *= std::pow(ratio, kStepRate * std::min(by.above, 1.0));
    if (n == narrowest_) {
        speed_ *= std::pow(ratio, kRegimeRate);
        return;
    }
    speed_ *= std::pow(ratio, kWideRegimeRate);
    wide_outliers_.clear();
    const double rate = ratio > 1 ? kContentionRate : kReliefRate;
    const std::vector<std::pair<double, double>> near = {{narrowest_, 0.0}, {n, rate}, {4.0 * n, 0.0}};
    for (size_t width = 0; width < contention_.size(); ++width) {
        const double share = interpolated(static_cast<double>(width), near);
        if (share > 0) contention_[width] = std::max(contention_[width] * std::pow(ratio, share), 1.0);
    }
}

// Forget a little of what steps told; several steps' worth now and then, which takes less time.
void Regimes::decay(const Weights& by) {
    const double share = 1 - std::pow(1 - kDecay, kDecayEvery), kept = std::pow(1 - kSpeedDecay, kDecayEvery);
    const auto forget = [&](Depth& depth) {
        for (size_t n = 0; n < depth.present.size(); ++n)
            depth.present[n] *= std::pow(depth.measured[n] / depth.present[n], share);
    };
    if (by.below > 0) forget(depths_[by.low]);
    if (by.above > 0) forget(depths_[by.high]);
    for (double& times : contention_)
        if (times != 1.0) times = std::pow(times, kept);
}

// After a few far too costly wide steps, wide steps are costly: interpolated between the widths seen, and down to
// nothing at the narrowest.
void Regimes::note_wide(int n, double ratio) {
    if (ratio < 1) {
        wide_outliers_.clear();
        std::fill(contention_.begin(), contention_.end(), 1.0);
        return;
    }
    wide_outliers_.emplace_back(n, ratio);
    if (wide_outliers_.size() < kInARow) return;
    std::map<int, double> least = {{narrowest_, 1.0}};
    for (const auto& [width, times] : wide_outliers_) {
        const auto [at, first] = least.emplace(width, times);
        if (!first) at->second = std::min(at->second, times);
    }
    std::vector<std::pair<double, double>> known;
    for (const auto& [width, times] : least) known.emplace_back(width, std::log(times));
    for (size_t width = 0; width < contention_.size(); ++width)
        contention_[width] *= std::exp(interpolated(static_cast<double>(width), known));
    wide_outliers_.clear();
    outliers_.clear();
}

// Steps of width `n` surely take so long, far from what was known; returns as `observe`.
double Regimes::move(int n, const Weights& by, double ms) {
    double factor = ms / expected(n, by), scaled = 1.0;
    if (n != narrowest_) {
        outliers_.erase(n);
        moved_.insert(n);
        const size_t i = static_cast<size_t>(n);
        if (by.below > 0) depths_[by.low].present[i] *= factor;
        if (by.above > 0) depths_[by.high].present[i] *= factor;
        return 1.0;
    }
    if (factor > 1) {  // the machine is slower, for now
        speed_ *= factor;
        for (double& times : contention_) times = std::max(times / factor, 1.0);
        for (Depth& depth : depths_)
            for (const int width : moved_) depth.present[static_cast<size_t>(width)] /= factor;
    } else {
        end_contention(n);
        factor = ms / expected(n, by);
        if (factor < 1 / kClip) {  // the machine cannot be too fast: it was not at its best when measured
            scaled = factor;
            scale(factor);
        }
    }
    begin_regime(speed_);
    return scaled;
}

// Width `n` goes back to its measured time, and others to theirs where they were thought dearer.
void Regimes::end_contention(int n) {
    for (Depth& depth : depths_) {
        for (size_t width = 0; width < depth.present.size(); ++width) {
            double& present = depth.present[width];
            const double measured = depth.measured[width];
            if (moved_.count(static_cast<int>(width))) {
                present *= speed_;
            } else {
                present = static_cast<int>(width) == n ? measured : std::min(present, measured);
            }
        }
    }
    speed_ = 1.0;
    std::fill(contention_.begin(), contention_.end(), 1.0);
}

// Multiply what was measured, and the present times of all widths but those that moved.
void Regimes::scale(double factor) {
    for (Depth& depth : depths_) {
        for (size_t width = 0; width < depth.present.size(); ++width) {
            depth.measured[width] *= factor;
            if (!moved_.count(static_cast<int>(width))) depth.present[width] *= factor;
        }
    }
}

// Nothing is pending about how far off anything might be.
void Regimes::begin_regime(double speed) {
    speed_ = speed;
    outliers_.clear();
    moved_.clear();
    wide_outliers_.clear();
}

Regimes::Table Regimes::unknown() const {
    Table found(contention_.size());
    std::iota(found.begin(), found.end(), 0.0);
    return found;
}

void Regimes::check(int n) const {
    if (n < 0 || n > max_width_) throw std::out_of_range("there is no step of that width");
}

namespace {

nb::object array_of(const Regimes::Table& values) {
    auto* held = new Regimes::Table(values);
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<Regimes::Table*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, double>(held->data(), {held->size()}, owner));
}

using Doubles = Shared<const double, nb::ndim<1>>;

void rebase(Regimes& self, const nb::dict& tables) {
    std::map<int64_t, Regimes::Table> measured;
    for (const auto& [depth, table] : tables) {
        const auto values = nb::cast<Doubles>(table);
        measured[nb::cast<int64_t>(depth)].assign(values.data(), values.data() + values.shape(0));
    }
    self.rebase(measured);
}

// What the next step costs after one of the width `before`, as engine/plan.py tells; widths from `unused` on are not
// used, but for the widest.
nb::object step_costs(const Regimes& self, int64_t length, size_t unused, size_t before, double switch_ms) {
    constexpr double never = std::numeric_limits<double>::infinity();
    Regimes::Table costs = self.costs(length);
    if (switch_ms != 0) {
        if (before == 1) {
            for (size_t n = 2; n < costs.size(); ++n) costs[n] += switch_ms;
        } else if (before < costs.size()) {
            costs[before] = std::max(costs[before] - switch_ms, costs[1]);
        }
    }
    costs[0] = never;
    for (size_t n = unused; n < costs.size() - 1; ++n) costs[n] = never;
    return array_of(costs);
}

}  // namespace

void bind_regimes(nb::module_& m) {
    m.attr("CLIP") = Regimes::kClip;
    m.attr("IN_A_ROW") = Regimes::kInARow;
    nb::class_<Regimes>(m, "Regimes")
        .def(nb::init<int>(), "max_width"_a)
        .def("rebase", &rebase, "measured"_a)
        .def("reset", &Regimes::reset)
        .def("step_costs", &step_costs, "length"_a, "unused"_a, "before"_a = 0, "switch_ms"_a = 0.0)
        .def("costs", [](const Regimes& self, int64_t length) { return array_of(self.costs(length)); }, "length"_a)
        .def("total_costs", [](const Regimes& self, const std::vector<int64_t>& lengths) {
            return array_of(self.total_costs(lengths));
        }, "lengths"_a)
        .def("cost", &Regimes::cost, "n"_a, "length"_a)
        .def("quiet", &Regimes::quiet, "n"_a, "length"_a)
        .def("nearest", &Regimes::nearest, "length"_a)
        .def("corrections", &Regimes::corrections, "n"_a)
        .def("observe", &Regimes::observe, "n"_a, "length"_a, "ms"_a);
}
