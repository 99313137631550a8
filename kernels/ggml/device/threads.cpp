#include "threads.hpp"

#ifdef _OPENMP

#include <omp.h>

namespace specx {

void team_barrier(Team*) {
#pragma omp barrier
}

void team_run(int threads, void (*work)(void*, Team*, int, int), void* argument) {
    if (threads <= 1) {  // a barrier outside a parallel region is one of a team of one
        work(argument, nullptr, 0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    work(argument, nullptr, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace specx

#else

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace specx {

struct Team {
    explicit Team(int size) : size(size) {}
    int size;
    std::atomic<int> arrived{0};
    std::atomic<int> generation{0};
};

void team_barrier(Team* team) {
    int generation = team->generation.load(std::memory_order_acquire);
    if (team->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == team->size) {
        team->arrived.store(0, std::memory_order_relaxed);
        team->generation.store(generation + 1, std::memory_order_release);
        return;
    }
    constexpr int kSpins = 4096;  // then the processor is probably wanted by others
    for (int spin = 0; team->generation.load(std::memory_order_acquire) == generation; ++spin) {
        if (spin > kSpins) std::this_thread::yield();
    }
}

namespace {

struct Pool {
    std::mutex one_run;  // several contexts may compute at once: they take turns
    std::mutex mutex;
    std::condition_variable wake, idle;
    std::vector<std::thread> threads;
    void (*work)(void*, Team*, int, int) = nullptr;
    void* argument = nullptr;
    Team* team = nullptr;
    uint64_t run = 0;
    int running = 0;

    void member(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return run != seen; });
            seen = run;
            if (team == nullptr || index >= team->size) continue;
            lock.unlock();
            work(argument, team, index, team->size);
            lock.lock();
            if (--running == 0) idle.notify_one();
        }
    }
};

// Never destroyed: its threads sleep until the process ends.
Pool& pool() {
    static Pool* one = new Pool;
    return *one;
}

}  // namespace

void team_run(int threads, void (*work)(void*, Team*, int, int), void* argument) {
    Pool& p = pool();
    std::lock_guard<std::mutex> turn(p.one_run);
    Team team(threads < 1 ? 1 : threads);
    {
        std::lock_guard<std::mutex> lock(p.mutex);
        while (static_cast<int>(p.threads.size()) + 1 < team.size) {
            int index = static_cast<int>(p.threads.size()) + 1;
            p.threads.emplace_back([&p, index] { p.member(index); });
        }
        p.work = work;
        p.argument = argument;
        p.team = &team;
        p.running = team.size - 1;
        ++p.run;
    }
    p.wake.notify_all();
    work(argument, &team, 0, team.size);
    std::unique_lock<std::mutex> lock(p.mutex);
    p.idle.wait(lock, [&] { return p.running == 0; });
    p.team = nullptr;
}

}  // namespace specx

#endif
