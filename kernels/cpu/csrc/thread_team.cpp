#include "thread_team.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <algorithm>
#include <cassert>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>

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

// Counts from now on, and returns how many there were.
uint32_t count_forks(std::atomic<uint32_t>& num_forks) {
#if defined(__unix__) || defined(__APPLE__)
    static std::atomic<uint32_t>* counted = nullptr;
    static std::once_flag once;
    std::call_once(once, [&] {
        counted = &num_forks;
        pthread_atfork(nullptr, nullptr, [] { counted->fetch_add(1); });
    });
#endif
    return num_forks.load();
}

}  // namespace

std::atomic<uint32_t> ThreadTeam::num_forks_now{0};

ThreadTeam::ThreadTeam(int size)
    : size_(std::max(size, 1)), num_forks_(count_forks(num_forks_now)), sleepers_(new Sleepers) {
    sleepers_->members.reserve(static_cast<size_t>(size_) - 1);
    for (int thread = 1; thread < size_; ++thread) {
        try {
            sleepers_->members.emplace_back([this, thread] { member_loop(thread); });
        } catch (const std::system_error& error) {
            stop();
            throw std::runtime_error("num_threads is " + std::to_string(size) + ", but the system gives this process " +
                                     std::to_string(thread) + " (" + error.what() +
                                     "): lower num_threads, or raise the limit on processes or memory.");
        }
    }
}

ThreadTeam::~ThreadTeam() {
    if (is_forked()) {
        static_cast<void>(sleepers_.release());
    } else {
        stop();
    }
}

void ThreadTeam::stop() {
    {
        const std::lock_guard<std::mutex> lock(sleepers_->mutex);
        stopping_.store(true);
    }
    sleepers_->called.notify_all();
    for (std::thread& member : sleepers_->members) member.join();
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
    std::unique_lock<std::mutex> lock(sleepers_->mutex);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    sleepers_->finished.wait(lock, [&] { return num_done_.load(std::memory_order_seq_cst) == missing; });
    caller_sleeps_.store(false, std::memory_order_relaxed);
}

void ThreadTeam::rouse() {
    if (is_forked() || num_sleeping_.load(std::memory_order_relaxed) == 0) return;
    num_calls_.fetch_add(1, std::memory_order_relaxed);
    wake(size());
}

void ThreadTeam::wake(int64_t most) {
    // Who has counted itself sleeps, or holds the mutex until it does.
    { const std::lock_guard<std::mutex> lock(sleepers_->mutex); }
    if (most >= static_cast<int64_t>(sleepers_->members.size())) {
        sleepers_->called.notify_all();
    } else {
        for (int64_t i = 0; i < most; ++i) sleepers_->called.notify_one();
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
            { const std::lock_guard<std::mutex> lock(sleepers_->mutex); }
            sleepers_->finished.notify_one();
        }
    }
}

// False when the team stops.
bool ThreadTeam::wait_for_tasks(uint32_t& calls_seen) {
    const auto is_called = [&] {
        return has_tasks(ticket_.load(std::memory_order_seq_cst)) || stopping_.load(std::memory_order_relaxed);
    };
    if (!spin_until(member_spin_time, is_called)) {
        std::unique_lock<std::mutex> lock(sleepers_->mutex);
        num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
        sleepers_->called.wait(lock, [&] { return is_called() || num_calls_.load(std::memory_order_relaxed) != calls_seen; });
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
