// What this machine can do at most, for benchmarks to compare with.
#pragma once

#include <cstdint>

namespace paged_backend {

class Runtime;

struct LimitKernels {
    // Each runs `count` rounds and returns the operations (multiplications and additions) that it did.
    int64_t (*float_products)(int64_t count);
    int64_t (*int8_products)(int64_t count);   // null where the set has no such instruction
    int64_t (*int16_products)(int64_t count);  // likewise
    // Reads all bytes once; the result keeps the compiler from leaving it out.
    int64_t (*read)(const char* from, int64_t num_bytes);
};

// Operations and bytes a second, in the best twentieth of many short runs on all of the runtime's threads; 0 where
// there is none.
struct Limits {
    double float_flops;
    double int8_ops;
    double int16_ops;
    double memory_bytes;       // of 96 MiB a thread
    double memory_mean_bytes;  // the same in the mean of all runs: what a long read is given
    double l3_bytes;           // 4 MiB a thread, read again and again
    double l2_bytes;           // 256 KiB a thread, likewise
};

// Seconds from some beginning. On one thread it is the processor time of the calling thread, so that other work on the
// machine does not count; on several it is the time of day.
double benchmark_clock(int num_threads);

// The caller holds runtime.turn(). seconds: for each of the figures.
Limits measure_limits(Runtime& runtime, double seconds);

}  // namespace paged_backend
