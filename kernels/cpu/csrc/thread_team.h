// A small team of threads that share a list of tasks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace paged_backend {

// What a spinning thread does between two looks.
inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The caller works too, and only waits for tasks that others have begun: a member that the system has put aside
// delays nothing but the task it holds, and what waits for that. Who has nothing to do spins for some microseconds, then
// sleeps, so that other processes get the cores; while all are awake a round makes no system call.
//
// The threads are made by the constructor. A process that was forked later has none of them: there the caller does all.
class ThreadTeam {
  public:
    // Throws std::runtime_error where the system gives fewer threads.
    explicit ThreadTeam(int size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    // Calls work(task, thread) once for each task in 0 .. num_tasks - 1, with thread in 0 .. size() - 1; no two calls
    // that run at once have the same thread. `work` must not throw. Not to be called from two threads at once.
    //
    // Tasks are begun in their order, and each is begun as soon as it is claimed: so a task may wait for earlier ones,
    // never for later ones.
    template <class Work>
    void run(int64_t num_tasks, const Work& work) {
        if (num_tasks <= 1 || size_ == 1 || is_forked()) {
            for (int64_t task = 0; task < num_tasks; ++task) work(task, 0);
            return;
        }
        share(num_tasks, [](const void* context, int64_t task, int thread) {
            (*static_cast<const Work*>(context))(task, thread);
        }, &work);
    }

    // Wakes sleeping members: they will be there when rounds follow soon.
    void rouse();

    int size() const { return size_; }

  private:
    using Function = void (*)(const void* context, int64_t task, int thread);

    void stop();
    void share(int64_t num_tasks, Function function, const void* context);
    void member_loop(int thread);
    bool is_forked() const { return num_forks_ != num_forks_now.load(std::memory_order_relaxed); }
    bool wait_for_tasks(uint32_t& calls_seen);
    int64_t take_tasks(int thread);
    void wake(int64_t most);

    // Who sleeps, and on what. A forked process must not even destroy it: that would wait for threads that are not there.
    struct Sleepers {
        std::vector<std::thread> members;
        std::mutex mutex;
        std::condition_variable called;    // for members
        std::condition_variable finished;  // for the caller
    };

    static std::atomic<uint32_t> num_forks_now;  // of the process, counted in each child

    const int size_;
    const uint32_t num_forks_;  // when the threads were made
    std::unique_ptr<Sleepers> sleepers_;

    // Number of tasks (upper half) and the next one. Tasks are claimed by adding 1, so that each claim is of the round
    // that is on at that moment: a late thread can never take a task of a round that is over. A round's function stays
    // as it is until all of its claimed tasks are done.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<uint32_t> num_done_{0};  // tasks that members have done in this round
    std::atomic<int32_t> num_sleeping_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::atomic<uint32_t> num_calls_{0};  // of rouse
    Function function_ = nullptr;
    const void* context_ = nullptr;
};

}  // namespace paged_backend
