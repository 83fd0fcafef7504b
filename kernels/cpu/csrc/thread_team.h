// A small team of threads that share a list of independent tasks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace paged_backend {

// The caller works too, and only waits for tasks that others have begun: a member that the system has put aside
// delays nothing. Idle members spin for some microseconds, then sleep, so that other processes get the cores.
class ThreadTeam {
  public:
    explicit ThreadTeam(int size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    // Calls work(task, thread) once for each task in 0 .. num_tasks - 1, with thread in 0 .. size() - 1; no two calls
    // that run at once have the same thread. `work` must not throw. Not to be called from two threads at once.
    void run(int64_t num_tasks, const std::function<void(int64_t, int)>& work);

    int size() const { return static_cast<int>(members_.size()) + 1; }

  private:
    void member_loop(int thread);
    void take_tasks(const std::function<void(int64_t, int)>& work, int thread);

    std::vector<std::thread> members_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable left_;
    std::atomic<uint64_t> round_{0};                          // written under mutex_
    const std::function<void(int64_t, int)>* work_ = nullptr;  // under mutex_; null between rounds
    std::atomic<int> num_inside_{0};                          // written under mutex_; members in the present round
    bool stopping_ = false;                                   // under mutex_
    std::atomic<int64_t> next_task_{0};
    int64_t num_tasks_ = 0;
};

}  // namespace paged_backend
