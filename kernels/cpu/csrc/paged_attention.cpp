#include "paged_attention.h"

#include <algorithm>
#include <stdexcept>

namespace paged_backend {

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t rows_in_task(int64_t group_size) { return std::max<int64_t>(1, max_task_lines / group_size); }

void check_sizes(const PagedAttentionArgs& args) {
    if (args.head_size < 1 || args.head_size > max_head_size) {
        refuse("key_cache's head size must be in 1.." + std::to_string(max_head_size) + ", got " +
               std::to_string(args.head_size) + ".");
    }
    if (args.num_kv_heads < 1 || args.num_query_heads < 1 || args.num_query_heads % args.num_kv_heads != 0) {
        refuse("query's heads must be a multiple of the cache's " + std::to_string(args.num_kv_heads) + ", got " +
               std::to_string(args.num_query_heads) + ".");
    }
    if (args.block_size < 1) refuse("key_cache's blocks must hold at least one token.");
}

void check_sequence(const PagedAttentionArgs& args, int64_t sequence) {
    const std::string index = "[" + std::to_string(sequence) + "]";
    const int64_t num_rows = int64_t{args.query_start[sequence + 1]} - args.query_start[sequence];
    const int64_t context_len = args.context_lens[sequence];
    if (num_rows < 0) refuse("query_start must not decrease, it does after sequence " + std::to_string(sequence) + ".");
    if (num_rows == 0) return;
    if (context_len < num_rows) {
        refuse("context_lens" + index + " must count the sequence's " + std::to_string(num_rows) + " new rows, got " +
               std::to_string(context_len) + ".");
    }
    const int64_t num_used = (context_len + args.block_size - 1) / args.block_size;
    if (num_used > args.max_blocks) {
        refuse("block_tables has " + std::to_string(args.max_blocks) + " blocks a sequence, context_lens" + index +
               " needs " + std::to_string(num_used) + ".");
    }
    // Blocks that every row's window has left behind are not read, and may be anybody's by now.
    const int64_t first_seen =
        args.sliding_window ? std::max<int64_t>(0, context_len - num_rows - args.sliding_window + 1) : 0;
    const int32_t* table = args.block_tables + sequence * args.max_blocks;
    for (int64_t i = first_seen / args.block_size; i < num_used; ++i) {
        if (table[i] < 0 || table[i] >= args.num_blocks) {
            refuse("block_tables" + index + " must hold blocks of the cache in 0.." +
                   std::to_string(args.num_blocks - 1) + ", got " + std::to_string(table[i]) + ".");
        }
    }
}

PagedAttentionKernel kernel_of(const std::string& instruction_set) {
#if defined(PAGED_BACKEND_X86)
    if (instruction_set == "avx512") return paged_attention_task_avx512;
    if (instruction_set == "avx2") return paged_attention_task_avx2;
#endif
    (void)instruction_set;
    return paged_attention_task_portable;
}

}  // namespace

std::vector<std::string> available_instruction_sets() {
    std::vector<std::string> names;
#if defined(PAGED_BACKEND_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        names.emplace_back("avx512");
    }
    if (has_avx2) names.emplace_back("avx2");
#endif
    names.emplace_back("portable");
    return names;
}

int64_t paged_attention_scratch_floats(int64_t num_query_heads, int64_t num_kv_heads, int64_t head_size) {
    const int64_t group_size = num_query_heads / num_kv_heads;
    const int64_t lines = rows_in_task(group_size) * group_size;
    const int64_t width = round_up(head_size, 16);  // the widest vector of any instruction set
    // Queries and sums; weights; keys and values of a tile; maximum and sum of each line.
    const int64_t floats = 2 * lines * width + lines * tile_size + 2 * tile_size * width + 2 * round_up(lines, 16);
    return round_up(floats, scratch_alignment / static_cast<int64_t>(sizeof(float)));
}

PagedAttention::PagedAttention(int num_threads, const std::string& instruction_set)
    : team_(std::max(1, num_threads)), instruction_set_(instruction_set) {
    const std::vector<std::string> available = available_instruction_sets();
    if (instruction_set_ == "auto") instruction_set_ = available.front();
    if (std::find(available.begin(), available.end(), instruction_set_) == available.end()) {
        refuse("instruction_set must be auto or one that this processor has, got " + instruction_set_ + ".");
    }
    kernel_ = kernel_of(instruction_set_);
}

float* PagedAttention::scratch_of(int thread) const {
    const auto address = reinterpret_cast<uintptr_t>(scratch_.get());
    const uintptr_t aligned = (address + scratch_alignment - 1) / scratch_alignment * scratch_alignment;
    return reinterpret_cast<float*>(aligned) + thread * scratch_floats_;
}

void PagedAttention::run(const PagedAttentionArgs& args) {
    check_sizes(args);
    if (args.query_start[0] != 0 || args.query_start[args.num_sequences] != args.num_rows) {
        refuse("query_start must run from 0 to " + std::to_string(args.num_rows) + ", got " +
               std::to_string(args.query_start[0]) + " to " + std::to_string(args.query_start[args.num_sequences]) +
               ".");
    }
    const std::lock_guard<std::mutex> turn(turn_);
    const int64_t step = rows_in_task(args.num_query_heads / args.num_kv_heads);
    tasks_.clear();
    for (int64_t sequence = 0; sequence < args.num_sequences; ++sequence) {
        check_sequence(args, sequence);
        const int64_t num_rows = args.query_start[sequence + 1] - args.query_start[sequence];
        // Later rows see more keys: the longest tasks first, so that the last to end is a short one.
        for (int64_t first = (num_rows - 1) / step * step; num_rows > 0 && first >= 0; first -= step) {
            for (int64_t head = 0; head < args.num_kv_heads; ++head) {
                tasks_.push_back({static_cast<int32_t>(sequence), static_cast<int32_t>(head),
                                  static_cast<int32_t>(first),
                                  static_cast<int32_t>(std::min(step, num_rows - first))});
            }
        }
    }
    const int64_t needed = paged_attention_scratch_floats(args.num_query_heads, args.num_kv_heads, args.head_size);
    if (needed > scratch_floats_) {
        const int64_t spare = scratch_alignment / static_cast<int64_t>(sizeof(float));
        scratch_floats_ = 0;  // stays right if the allocation fails
        scratch_.reset(new float[static_cast<size_t>(needed * team_.size() + spare)]());
        scratch_floats_ = needed;
    }
    team_.run(static_cast<int64_t>(tasks_.size()),
              [&](int64_t task, int thread) { kernel_(args, tasks_[static_cast<size_t>(task)], scratch_of(thread)); });
}

}  // namespace paged_backend
