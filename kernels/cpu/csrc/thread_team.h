// A small team of threads that share a list of independent tasks.
#pragma once

#include <cstdint>
#include <memory>

namespace paged_backend {

// The caller works too, and only waits for tasks that others have begun: a member that the system has put aside
// delays nothing but the task it holds. Idle members spin for some microseconds, then sleep.
class ThreadTeam {
  public:
    explicit ThreadTeam(int size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    // Calls work(task, thread) once for each task in 0 .. num_tasks - 1, with thread in 0 .. size() - 1; no two calls
    // that run at once have the same thread. `work` must not throw. Not to be called from two threads at once.
    template <class Work>
    void run(int64_t num_tasks, const Work& work) {
        run(num_tasks, [](const void* context, int64_t task, int thread) { (*static_cast<const Work*>(context))(task, thread); }, &work);
    }

    int size() const;

  private:
    using Function = void (*)(const void* context, int64_t task, int thread);
    void run(int64_t num_tasks, Function function, const void* context);
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace paged_backend
