// A team of threads that runs one function together.
//
// With OpenMP the team is the one ggml's CPU device uses (the same runtime in the same process), so that
// two sets of threads never compete or spin against each other. Without OpenMP (Apple's compiler, which builds
// ggml without it too) the team is a small pool of threads that sleep between two runs.
#pragma once

namespace specx {

struct Team;

// Wait until every member of the team has come here.
void team_barrier(Team* team);

// Call `work(argument, team, member, size)` once for each member, at the same time. `size` is `threads`
// or less.
void team_run(int threads, void (*work)(void* argument, Team* team, int member, int size), void* argument);

}  // namespace specx
