// Work in several threads at once, for measurements.
#pragma once

#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

// Calls `work(i)` for each i below n, in a thread of its own. Where the system gives no more threads, this one does
// what is left: one that is not waited for would end the process.
template <class Work>
void side_by_side(size_t n, const Work& work) {
    std::vector<std::thread> team;
    team.reserve(n);
    try {
        while (team.size() < n) team.emplace_back(work, team.size());
    } catch (const std::system_error&) {
    }
    for (size_t i = team.size(); i < n; ++i) work(i);
    for (std::thread& member : team) member.join();
}
