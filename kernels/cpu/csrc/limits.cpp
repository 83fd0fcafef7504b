#include "limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "aligned_memory.h"
#include "runtime.h"

namespace paged_backend {

namespace {

// The best rate of rounds that last until `seconds` are over. round() returns its amount of work, of all threads.
template <class Round>
double best_rate(double seconds, const Round& round) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    double best = 0.0;
    do {
        const Clock::time_point begin = Clock::now();
        const int64_t amount = round();
        const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
        best = std::max(best, static_cast<double>(amount) / elapsed);
    } while (Clock::now() < end);
    return best;
}

double product_rate(Runtime& runtime, double seconds, int64_t (*products)(int64_t)) {
    if (products == nullptr) return 0.0;
    const int64_t num_tasks = 4 * runtime.team().size();
    return best_rate(seconds, [&] {
        std::atomic<int64_t> done{0};
        runtime.team().run(num_tasks, [&](int64_t, int) { done.fetch_add(products(10000)); });
        return done.load();
    });
}

double read_rate(Runtime& runtime, double seconds, int64_t num_bytes, int64_t num_tasks, int64_t repeats) {
    const AlignedMemory memory(num_bytes);
    std::memset(memory.data(), 1, static_cast<size_t>(num_bytes));
    const int64_t part = num_bytes / num_tasks / 4096 * 4096;
    const auto read = runtime.kernels().limits.read;
    return best_rate(seconds, [&] {
        std::atomic<int64_t> sum{0};
        runtime.team().run(num_tasks, [&](int64_t task, int) {
            for (int64_t i = 0; i < repeats; ++i) sum.fetch_add(read(memory.data() + task * part, part));
        });
        return part * num_tasks * repeats + (sum.load() & 1);
    });
}

}  // namespace

Limits measure_limits(Runtime& runtime, double seconds) {
    const LimitKernels& kernels = runtime.kernels().limits;
    const int64_t num_threads = runtime.team().size();
    Limits limits;
    limits.float_flops = product_rate(runtime, seconds, kernels.float_products);
    limits.int8_ops = product_rate(runtime, seconds, kernels.int8_products);
    limits.int16_ops = product_rate(runtime, seconds, kernels.int16_products);
    limits.memory_bytes = read_rate(runtime, seconds, int64_t{256} << 20, 64, 1);
    limits.l3_bytes = read_rate(runtime, seconds, num_threads * (int64_t{4} << 20), num_threads, 4);
    limits.l2_bytes = read_rate(runtime, seconds, num_threads * (int64_t{256} << 10), num_threads, 64);
    return limits;
}

}  // namespace paged_backend
