#include "thread_team.h"

#include <cassert>
#include <chrono>

namespace paged_backend {

namespace {

// Longer than what lies between two rounds of a program; shorter than what another process would miss.
constexpr auto member_spin_time = std::chrono::microseconds(50);
// A caller that waits longer than most tasks take waits for a member that the system has put aside: asleep it leaves
// its core to that member.
constexpr auto caller_spin_time = std::chrono::microseconds(50);

// Waits for a condition for `time` at most, and returns whether it came true.
template <class Condition>
bool spin_until(std::chrono::nanoseconds time, const Condition& condition) {
    // Reading the clock costs more than looking again.
    constexpr int looks_per_clock = 16;
    for (int look = 0; look < looks_per_clock; ++look) {
        if (condition()) return true;
        pause_briefly();
    }
    const auto end = std::chrono::steady_clock::now() + time;
    do {
        for (int look = 0; look < looks_per_clock; ++look) {
            if (condition()) return true;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() < end);
    return condition();
}

constexpr uint64_t next_mask = 0xffffffff;

bool has_tasks(uint64_t ticket) { return (ticket & next_mask) < (ticket >> 32); }

}  // namespace

ThreadTeam::ThreadTeam(int size) {
    members_.reserve(size > 1 ? static_cast<size_t>(size) - 1 : 0);
    try {
        for (int thread = 1; thread < size; ++thread) {
            members_.emplace_back([this, thread] { member_loop(thread); });
        }
    } catch (...) {  // the system gives no more of them: those that are there must end first
        stop();
        throw;
    }
}

ThreadTeam::~ThreadTeam() { stop(); }

void ThreadTeam::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_.store(true);
    }
    called_.notify_all();
    for (std::thread& member : members_) member.join();
}

void ThreadTeam::share(int64_t num_tasks, Function function, const void* context) {
    assert(num_tasks < int64_t{1} << 31);  // what is claimed too much, once by each thread, must not overflow
    function_ = function;
    context_ = context;
    num_done_.store(0, std::memory_order_relaxed);
    // A member that goes to sleep counts itself, then looks at the ticket once more: one of us sees the other.
    ticket_.store(static_cast<uint64_t>(num_tasks) << 32, std::memory_order_seq_cst);
    if (num_sleeping_.load(std::memory_order_seq_cst) > 0) wake(num_tasks - 1);
    const auto missing = static_cast<uint32_t>(num_tasks - take_tasks(0));
    const auto is_done = [&] { return num_done_.load(std::memory_order_acquire) == missing; };
    if (spin_until(caller_spin_time, is_done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    finished_.wait(lock, [&] { return num_done_.load(std::memory_order_seq_cst) == missing; });
    caller_sleeps_.store(false, std::memory_order_relaxed);
}

void ThreadTeam::rouse() {
    if (num_sleeping_.load(std::memory_order_relaxed) == 0) return;
    num_calls_.fetch_add(1, std::memory_order_relaxed);
    wake(size());
}

void ThreadTeam::wake(int64_t most) {
    // Who has counted itself sleeps, or holds the mutex until it does.
    { const std::lock_guard<std::mutex> lock(mutex_); }
    if (most >= static_cast<int64_t>(members_.size())) {
        called_.notify_all();
    } else {
        for (int64_t i = 0; i < most; ++i) called_.notify_one();
    }
}

int64_t ThreadTeam::take_tasks(int thread) {
    int64_t num_taken = 0;
    for (;;) {
        const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
        if (!has_tasks(ticket)) return num_taken;
        function_(context_, static_cast<int64_t>(ticket & next_mask), thread);
        ++num_taken;
        if (thread == 0) continue;
        num_done_.fetch_add(1, std::memory_order_seq_cst);
        if (caller_sleeps_.load(std::memory_order_seq_cst)) {
            { const std::lock_guard<std::mutex> lock(mutex_); }
            finished_.notify_one();
        }
    }
}

// False when the team stops.
bool ThreadTeam::wait_for_tasks(uint32_t& calls_seen) {
    const auto is_called = [&] {
        return has_tasks(ticket_.load(std::memory_order_seq_cst)) || stopping_.load(std::memory_order_relaxed);
    };
    if (!spin_until(member_spin_time, is_called)) {
        std::unique_lock<std::mutex> lock(mutex_);
        num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
        called_.wait(lock, [&] { return is_called() || num_calls_.load(std::memory_order_relaxed) != calls_seen; });
        num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
    calls_seen = num_calls_.load(std::memory_order_relaxed);
    return !stopping_.load(std::memory_order_relaxed);
}

void ThreadTeam::member_loop(int thread) {
    uint32_t calls_seen = 0;
    while (wait_for_tasks(calls_seen)) {
        if (has_tasks(ticket_.load(std::memory_order_relaxed))) take_tasks(thread);
    }
}

}  // namespace paged_backend
