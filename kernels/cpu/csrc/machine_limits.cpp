#include "machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <vector>

#include "aligned_memory.h"
#include "runtime.h"

namespace paged_backend {

namespace {

struct Rate {
    double best;  // what the best twentieth of the rounds reach
    double mean;  // of all rounds together
};

// The rate of rounds that last until `seconds` are over. Rounds are short, so that some are not disturbed by whatever
// else runs. round() returns its amount of work, of all threads.
template <class Round>
Rate rate_of(Runtime& runtime, double seconds, const Round& round) {
    const int num_threads = runtime.team().size();
    const double end = benchmark_clock(num_threads) + seconds;
    std::vector<double> rates;
    double all_amounts = 0.0, all_seconds = 0.0;
    do {
        const double begin = benchmark_clock(num_threads);
        const auto amount = static_cast<double>(round());
        const double took = benchmark_clock(num_threads) - begin;
        rates.push_back(amount / took);
        all_amounts += amount;
        all_seconds += took;
    } while (benchmark_clock(num_threads) < end);
    const auto chosen = rates.begin() + static_cast<int64_t>(rates.size() * 19 / 20);
    std::nth_element(rates.begin(), chosen, rates.end());
    return {*chosen, all_amounts / all_seconds};
}

double product_rate(Runtime& runtime, double seconds, int64_t (*products)(int64_t)) {
    if (products == nullptr) return 0.0;
    const int64_t num_tasks = runtime.team().size();
    return rate_of(runtime, seconds, [&] {
        std::atomic<int64_t> done{0};
        runtime.team().run(num_tasks, [&](int64_t, int) { done.fetch_add(products(10000)); });
        return done.load();
    }).best;
}

// Rounds read one part of the memory after the other; a part is as large for each thread, and read `repeats` times.
Rate read_rate(Runtime& runtime, double seconds, int64_t num_bytes, int64_t part_bytes, int64_t repeats) {
    const int64_t num_threads = runtime.team().size();
    const AlignedMemory memory(num_bytes * num_threads);
    std::memset(memory.data(), 1, static_cast<size_t>(num_bytes * num_threads));
    const auto read = runtime.kernels().limits.read;
    int64_t begin = 0;
    return rate_of(runtime, seconds, [&] {
        std::atomic<int64_t> sum{0};
        runtime.team().run(num_threads, [&](int64_t task, int) {
            for (int64_t i = 0; i < repeats; ++i)
                sum.fetch_add(read(memory.data() + task * num_bytes + begin, part_bytes));
        });
        begin = begin + 2 * part_bytes <= num_bytes ? begin + part_bytes : 0;
        return part_bytes * num_threads * repeats + (sum.load() & 1);
    });
}

}  // namespace

double benchmark_clock(int num_threads) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    if (num_threads == 1) {
        timespec time;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    }
#endif
    (void)num_threads;
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Limits measure_limits(Runtime& runtime, double seconds) {
    const LimitKernels& kernels = runtime.kernels().limits;
    constexpr int64_t mebibyte = 1 << 20;
    Limits limits;
    limits.float_flops = product_rate(runtime, seconds, kernels.float_products);
    limits.int8_ops = product_rate(runtime, seconds, kernels.int8_products);
    limits.int16_ops = product_rate(runtime, seconds, kernels.int16_products);
    const Rate memory = read_rate(runtime, seconds, 96 * mebibyte, 2 * mebibyte, 1);
    limits.memory_bytes = memory.best;
    limits.memory_mean_bytes = memory.mean;
    limits.l3_bytes = read_rate(runtime, seconds, 4 * mebibyte, 4 * mebibyte, 1).best;
    limits.l2_bytes = read_rate(runtime, seconds, mebibyte / 4, mebibyte / 4, 16).best;
    return limits;
}

}  // namespace paged_backend
