// Runs numbered tasks on a thread pool and the calling thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "problem.h"

// Calls work(task, worker) for every task. Each of the workers is one thread at a time, and worker 0
// is the caller. `schedule` takes a function without arguments that a thread of the pool is to run.
//
// The caller works too, so the tasks end even if no thread of the pool is free. It then sleeps until
// the others have finished what they began. A thread that comes too late finds no task, and touches
// nothing but the state, which lives as long as anyone holds it.
template <typename Schedule, typename Work>
void run_tasks(Int tasks, Int workers, Schedule schedule, Work work) {
  struct State {
    explicit State(Work w) : work(w) {}
    Work work;
    std::atomic<Int> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    Int done = 0;
  };
  auto state = std::make_shared<State>(work);
  auto run = [state, tasks](Int worker) {
    Int mine = 0;
    for (Int task; (task = state->next.fetch_add(1)) < tasks; ++mine) state->work(task, worker);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += mine;
    if (state->done == tasks) state->finished.notify_one();
  };
  for (Int worker = 1; worker < least(tasks, workers); ++worker)
    schedule([run, worker] { run(worker); });
  run(0);
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == tasks; });
}
