#include "paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "runtime.h"
#include "whole_numbers.h"

namespace paged_backend {

namespace {

// Work is counted in (line, key) pairs. Tasks smaller than this cost more to hand out than to compute.
constexpr int64_t least_work = 1024;
// Tasks a thread, so that threads end together.
constexpr int64_t tasks_per_thread = 4;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_sizes(const PagedAttentionArgs& args) {
    const CacheLayout& cache = args.cache;
    if (cache.head_size < 1 || cache.head_size > max_head_size) {
        refuse("the cache's head_size must be in 1.." + std::to_string(max_head_size) + ", got " +
               std::to_string(cache.head_size) + ".");
    }
    if (cache.block_size < 1) refuse("the cache's block_size must be 1 or more, got " + std::to_string(cache.block_size) + ".");
    if (cache.num_kv_heads < 1 || args.num_query_heads < 1 || args.num_query_heads % cache.num_kv_heads != 0) {
        refuse("query's heads must be a multiple of the cache's " + std::to_string(cache.num_kv_heads) + ", got " +
               std::to_string(args.num_query_heads) + ".");
    }
    if (args.sliding_window < 0) {
        refuse("sliding_window must be 0 (none) or more, got " + std::to_string(args.sliding_window) + ".");
    }
    if (!std::isfinite(args.scale)) refuse("scale must be a finite number, got " + std::to_string(args.scale) + ".");
    if (!(args.soft_cap >= 0.0f) || !std::isfinite(args.soft_cap)) {
        refuse("soft_cap must be 0 (none) or a positive number, got " + std::to_string(args.soft_cap) + ".");
    }
    if (args.num_sequences < 0 || args.query_start[0] != 0 || args.query_start[args.num_sequences] != args.num_rows) {
        refuse("query_start must run from 0 to " + std::to_string(args.num_rows) + ", got " +
               std::to_string(args.query_start[0]) + " to " + std::to_string(args.query_start[args.num_sequences]) +
               ".");
    }
}

void check_sequence(const PagedAttentionArgs& args, int64_t sequence) {
    const auto index = [&] { return "[" + std::to_string(sequence) + "]"; };
    const int64_t num_rows = int64_t{args.query_start[sequence + 1]} - args.query_start[sequence];
    const int64_t context_len = args.context_lens[sequence];
    if (num_rows < 0) refuse("query_start must not decrease, it does after sequence " + std::to_string(sequence) + ".");
    if (num_rows == 0) return;
    if (context_len < num_rows) {
        refuse("context_lens" + index() + " must count the sequence's " + std::to_string(num_rows) + " new rows, got " +
               std::to_string(context_len) + ".");
    }
    const int64_t num_used = divide_up(context_len, args.cache.block_size);
    if (num_used > args.max_blocks) {
        refuse("block_tables has " + std::to_string(args.max_blocks) + " blocks a sequence, context_lens" + index() +
               " needs " + std::to_string(num_used) + ".");
    }
    // Blocks that every row's window has left behind are not read, and may be anybody's by now.
    const int64_t first_seen =
        args.sliding_window ? std::max<int64_t>(0, context_len - num_rows - args.sliding_window + 1) : 0;
    const int32_t* table = args.block_tables + sequence * args.max_blocks;
    for (int64_t i = first_seen / args.cache.block_size; i < num_used; ++i) {
        if (table[i] < 0 || table[i] >= args.num_blocks) {
            refuse("block_tables" + index() + " must hold blocks of the cache in 0.." +
                   std::to_string(args.num_blocks - 1) + ", got " + std::to_string(table[i]) + ".");
        }
    }
}

// What some rows of a sequence see together.
struct Seen {
    int64_t begin;
    int64_t end;

    int64_t first_part() const { return begin / part_size; }
    int64_t num_parts() const { return divide_up(end, part_size) - first_part(); }
};

Seen seen_by(const PagedAttentionArgs& args, int64_t sequence, int64_t first_row, int64_t num_rows) {
    const int64_t sequence_rows = args.query_start[sequence + 1] - args.query_start[sequence];
    const int64_t first = args.context_lens[sequence] - sequence_rows + first_row;
    return {args.sliding_window ? std::max<int64_t>(0, first - args.sliding_window + 1) : 0, first + num_rows};
}

// Calls use(sequence, first_row, num_rows) for the rows of tasks.
template <class Use>
void for_each_chunk(const PagedAttentionArgs& args, int64_t chunk_rows, const Use& use) {
    for (int64_t sequence = 0; sequence < args.num_sequences; ++sequence) {
        const int64_t num_rows = args.query_start[sequence + 1] - args.query_start[sequence];
        for (int64_t first = 0; first < num_rows; first += chunk_rows) {
            use(sequence, first, std::min(chunk_rows, num_rows - first));
        }
    }
}

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }

}  // namespace

void PagedAttention::plan(const PagedAttentionArgs& args, int num_threads) {
    tasks_.clear();
    work_.clear();
    splits_.clear();
    check_sizes(args);
    for (int64_t sequence = 0; sequence < args.num_sequences; ++sequence) check_sequence(args, sequence);

    const int64_t num_heads = args.cache.num_kv_heads;
    const int64_t group = args.num_query_heads / num_heads;
    const int64_t chunk_rows = std::max<int64_t>(1, max_task_lines / group);
    int64_t all_work = 0;
    for_each_chunk(args, chunk_rows, [&](int64_t sequence, int64_t first_row, int64_t num_rows) {
        const Seen seen = seen_by(args, sequence, first_row, num_rows);
        all_work += num_rows * group * (seen.end - seen.begin) * num_heads;
    });
    const int64_t largest_work = num_threads == 1 ? std::numeric_limits<int64_t>::max()
                                                  : std::max(least_work, all_work / (num_threads * tasks_per_thread));
    int64_t results = 0;
    max_lines_ = 0;
    for_each_chunk(args, chunk_rows, [&](int64_t sequence, int64_t first_row, int64_t num_rows) {
        const Seen seen = seen_by(args, sequence, first_row, num_rows);
        const int64_t lines = num_rows * group;
        const int64_t work = lines * (seen.end - seen.begin);  // of a head
        const int64_t num_parts = seen.num_parts();
        max_lines_ = std::max(max_lines_, lines);
        PagedAttentionTask task = {narrow(sequence),          narrow(first_row), narrow(num_rows), 0, 1,
                                   narrow(seen.first_part()), narrow(num_parts), -1};
        if (num_parts == 1 || work <= largest_work) {
            const int64_t heads = std::max<int64_t>(1, std::min(num_heads, largest_work / work));
            for (int64_t head = 0; head < num_heads; head += heads) {
                task.first_head = narrow(head);
                task.num_heads = narrow(std::min(heads, num_heads - head));
                add_task(task, work * task.num_heads);
            }
            return;
        }
        const int64_t wanted = std::min(num_parts, divide_up(work, largest_work));
        const int64_t parts = divide_up(num_parts, wanted);
        for (int64_t head = 0; head < num_heads; ++head) {
            task.first_head = narrow(head);
            task.first_part = narrow(seen.first_part());
            task.num_parts = narrow(num_parts);
            task.split = narrow(static_cast<int64_t>(splits_.size()));
            splits_.push_back({task, results, narrow(divide_up(num_parts, parts))});
            results += num_parts * lines * split_line_floats;
            for (int64_t part = 0; part < num_parts; part += parts) {
                task.first_part = narrow(seen.first_part() + part);
                task.num_parts = narrow(std::min(parts, num_parts - part));
                add_task(task, work * task.num_parts / num_parts);
            }
        }
    });
    if (results_.size() < static_cast<size_t>(results)) results_.resize(static_cast<size_t>(results));
    if (open_capacity_ < splits_.size()) {
        open_.reset(new std::atomic<int32_t>[splits_.size()]);
        open_capacity_ = splits_.size();
    }
    sort_tasks();
}

void PagedAttention::add_task(const PagedAttentionTask& task, int64_t work) {
    tasks_.push_back(task);
    work_.push_back(work);
}

// The longest first, so that the last to end is a short one: to within an eighth, in one pass.
void PagedAttention::sort_tasks() {
    constexpr size_t num_classes = 64 * 8;
    const auto class_of = [](int64_t work) {
        int exponent = 0;
        while (work >= 16) {
            work /= 2;
            ++exponent;
        }
        // Work of 8..15 times a power of 2, or less than 8: larger work comes first.
        return num_classes - 1 - static_cast<size_t>(exponent * 8 + work);
    };
    size_t begin[num_classes + 1] = {};
    for (const int64_t work : work_) ++begin[class_of(work) + 1];
    for (size_t i = 1; i <= num_classes; ++i) begin[i] += begin[i - 1];
    sorted_.resize(tasks_.size());
    for (size_t i = 0; i < tasks_.size(); ++i) sorted_[begin[class_of(work_[i])]++] = tasks_[i];
    tasks_.swap(sorted_);
}

void PagedAttention::run(Runtime& runtime, const PagedAttentionArgs& args) {
    if (tasks_.empty()) return;
    const PagedAttentionKernel& kernel = runtime.kernels().paged_attention;
    char* const* scratch = runtime.scratch(kernel.scratch_bytes(max_lines_));
    for (size_t i = 0; i < splits_.size(); ++i) open_[i].store(splits_[i].num_tasks, std::memory_order_relaxed);
    const auto num_tasks = static_cast<int64_t>(tasks_.size());
    const int64_t num_threads = runtime.team().size();
    runtime.team().run(num_tasks, [&](int64_t index, int thread) {
        const PagedAttentionTask& task = tasks_[static_cast<size_t>(index)];
        const PagedAttentionTask& next = tasks_[static_cast<size_t>(std::min(index + num_threads, num_tasks - 1))];
        if (task.split < 0) return kernel.attend(args, task, next, scratch[thread], nullptr);
        const auto split = static_cast<size_t>(task.split);
        const PagedAttentionTask& whole = splits_[split].whole;
        float* results = results_.data() + splits_[split].offset;
        const int64_t lines = whole.num_rows * (args.num_query_heads / args.cache.num_kv_heads);
        const int64_t before = (task.first_part - whole.first_part) * lines * split_line_floats;
        kernel.attend(args, task, next, scratch[thread], results + before);
        // Who ends last puts the parts together.
        if (open_[split].fetch_sub(1, std::memory_order_acq_rel) == 1) kernel.merge(args, whole, results);
    });
}

}  // namespace paged_backend
