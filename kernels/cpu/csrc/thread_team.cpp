#include "thread_team.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace paged_backend {

namespace {

constexpr auto spin_time = std::chrono::microseconds(50);

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    while (!condition() && std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 16 && !condition(); ++i) pause_briefly();
    }
}

}  // namespace

// (stand-in) ticket: round in the high 32 bits, tasks left to claim in the low 32.
struct ThreadTeam::State {
    std::vector<std::thread> members;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<uint64_t> ticket{0};
    std::atomic<uint32_t> round{0};
    std::atomic<int64_t> done{0};
    std::atomic<int> sleeping{0};
    std::atomic<bool> stopping{false};
    std::atomic<Function> function{nullptr};
    std::atomic<const void*> context{nullptr};
    std::atomic<uint32_t> num_tasks{0};

    void take(uint32_t my_round, int thread) {
        for (;;) {
            uint64_t seen = ticket.load(std::memory_order_acquire);
            for (;;) {
                if (static_cast<uint32_t>(seen >> 32) != my_round || static_cast<uint32_t>(seen) == 0) return;
                if (ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) break;
            }
            const uint32_t total = num_tasks.load(std::memory_order_relaxed);
            function.load(std::memory_order_relaxed)(context.load(std::memory_order_relaxed), total - static_cast<uint32_t>(seen), thread);
            done.fetch_add(1, std::memory_order_release);
        }
    }

    void loop(int thread) {
        uint32_t seen = 0;
        for (;;) {
            spin_until([&] { return round.load(std::memory_order_acquire) != seen; });
            if (round.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                sleeping.fetch_add(1);
                wake.wait(lock, [&] { return round.load() != seen; });
                sleeping.fetch_sub(1);
            }
            if (stopping.load()) return;
            seen = round.load(std::memory_order_acquire);
            take(seen, thread);
        }
    }
};

ThreadTeam::ThreadTeam(int size) : state_(new State) {
    for (int thread = 1; thread < size; ++thread) state_->members.emplace_back([this, thread] { state_->loop(thread); });
}

ThreadTeam::~ThreadTeam() {
    {
        std::lock_guard<std::mutex> lock(state_->mutex);
        state_->stopping.store(true);
        state_->round.fetch_add(1);
    }
    state_->wake.notify_all();
    for (std::thread& member : state_->members) member.join();
}

int ThreadTeam::size() const { return static_cast<int>(state_->members.size()) + 1; }

void ThreadTeam::run(int64_t num_tasks, Function function, const void* context) {
    State& state = *state_;
    if (state.members.empty() || num_tasks <= 1) {
        for (int64_t task = 0; task < num_tasks; ++task) function(context, task, 0);
        return;
    }
    state.function.store(function, std::memory_order_relaxed);
    state.context.store(context, std::memory_order_relaxed);
    state.num_tasks.store(static_cast<uint32_t>(num_tasks), std::memory_order_relaxed);
    state.done.store(0, std::memory_order_relaxed);
    const uint32_t round = state.round.load() + 1;
    state.ticket.store(uint64_t{round} << 32 | static_cast<uint32_t>(num_tasks), std::memory_order_release);
    state.round.store(round);
    if (state.sleeping.load() > 0) {
        { std::lock_guard<std::mutex> lock(state.mutex); }
        state.wake.notify_all();
    }
    state.take(round, 0);
    while (state.done.load(std::memory_order_acquire) < num_tasks) pause_briefly();
}

}  // namespace paged_backend
