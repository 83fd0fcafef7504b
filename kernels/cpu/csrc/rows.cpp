#include "rows.h"

#include <algorithm>
#include <cstring>

#include "runtime.h"
#include "whole_numbers.h"

namespace paged_backend {

namespace {

// Sharing less than this (some microseconds of work) gains nothing, and waits where another process has the core.
constexpr int64_t floats_in_task = 32768;
// Tasks a thread, so that threads end together.
constexpr int64_t tasks_per_thread = 4;

// Calls work(first, end) for parts of the rows: one part on the calling thread, or several on the team.
template <class Work>
void for_rows(Runtime& runtime, int64_t num_rows, int64_t floats_in_row, const Work& work) {
    const int64_t least = std::max<int64_t>(1, floats_in_task / std::max<int64_t>(1, floats_in_row));
    const int64_t wanted = runtime.team().size() * tasks_per_thread;
    const int64_t part = std::max(least, divide_up(num_rows, wanted));
    if (num_rows < 2 * least || runtime.team().size() == 1) return work(0, num_rows);
    runtime.team().run(divide_up(num_rows, part), [&](int64_t task, int) {
        work(task * part, std::min(num_rows, (task + 1) * part));
    });
}

}  // namespace

void rms_norm(Runtime& runtime, const NormArgs& args) {
    const auto kernel = runtime.kernels().rows.rms_norm;
    for_rows(runtime, args.num_rows, 2 * args.width, [&](int64_t first, int64_t end) { kernel(args, first, end); });
}

void layer_norm(Runtime& runtime, const NormArgs& args) {
    const auto kernel = runtime.kernels().rows.layer_norm;
    for_rows(runtime, args.num_rows, 2 * args.width, [&](int64_t first, int64_t end) { kernel(args, first, end); });
}

void embedding(Runtime& runtime, const EmbeddingArgs& args) {
    const auto kernel = runtime.kernels().rows.embedding;
    for_rows(runtime, args.num_rows, args.width, [&](int64_t first, int64_t end) { kernel(args, first, end); });
}

void select_rows(Runtime& runtime, const SelectRowsArgs& args) {
    if (args.width == 0) return;  // there may be no memory
    for_rows(runtime, args.num_rows, args.width, [&](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; ++row) {
            const int64_t from = args.indices == nullptr ? row : args.indices[row];
            std::memcpy(args.out + row * args.out_stride, args.x + from * args.x_stride,
                        static_cast<size_t>(args.width) * sizeof(float));
        }
    });
}

void soft_cap(Runtime& runtime, const SoftCapArgs& args) {
    const auto kernel = runtime.kernels().rows.soft_cap;
    for_rows(runtime, args.num_rows, 4 * args.width, [&](int64_t first, int64_t end) { kernel(args, first, end); });
}

void qkv_to_cache(Runtime& runtime, const QkvToCacheArgs& args) {
    const auto kernel = runtime.kernels().rows.qkv_to_cache;
    const int64_t numbers = (args.num_heads + 2 * args.cache.num_kv_heads) * args.cache.head_size;
    for_rows(runtime, args.num_rows, 3 * numbers, [&](int64_t first, int64_t end) { kernel(args, first, end); });
}

}  // namespace paged_backend
