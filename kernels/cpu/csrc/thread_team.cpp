#include "thread_team.h"

#include <chrono>

namespace paged_backend {

namespace {

constexpr auto spin_time = std::chrono::microseconds(20);

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for a condition that is about to come true, for spin_time at most.
template <class Condition>
void spin_until(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    while (!condition() && std::chrono::steady_clock::now() < end) pause_briefly();
}

}  // namespace

ThreadTeam::ThreadTeam(int size) {
    members_.reserve(size > 1 ? size - 1 : 0);
    for (int thread = 1; thread < size; ++thread) {
        members_.emplace_back([this, thread] { member_loop(thread); });
    }
}

ThreadTeam::~ThreadTeam() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& member : members_) member.join();
}

void ThreadTeam::run(int64_t num_tasks, const std::function<void(int64_t, int)>& work) {
    if (members_.empty() || num_tasks <= 1) {
        for (int64_t task = 0; task < num_tasks; ++task) work(task, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        num_tasks_ = num_tasks;
        next_task_.store(0, std::memory_order_relaxed);
        work_ = &work;
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks(work, 0);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        work_ = nullptr;  // who has not come in by now stays out
    }
    spin_until([this] { return num_inside_.load(std::memory_order_acquire) == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [this] { return num_inside_.load(std::memory_order_relaxed) == 0; });
}

void ThreadTeam::take_tasks(const std::function<void(int64_t, int)>& work, int thread) {
    for (;;) {
        const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks_) return;
        work(task, thread);
    }
}

void ThreadTeam::member_loop(int thread) {
    uint64_t seen = 0;
    for (;;) {
        spin_until([&] { return round_.load(std::memory_order_acquire) != seen; });
        const std::function<void(int64_t, int)>* work = nullptr;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
            if (stopping_) return;
            seen = round_.load(std::memory_order_relaxed);
            work = work_;
            if (work == nullptr) continue;
            num_inside_.fetch_add(1, std::memory_order_relaxed);
        }
        take_tasks(*work, thread);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (num_inside_.fetch_sub(1, std::memory_order_release) == 1) left_.notify_one();
        }
    }
}

}  // namespace paged_backend
