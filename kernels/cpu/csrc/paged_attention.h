// Paged attention on the CPU: plain pointers and sizes in, no Python and no torch.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kv_cache.h"

namespace paged_backend {

class Runtime;

// One call. Pointers stay the caller's. Of what is written here, `plan` reads all but the first four pointers.
struct PagedAttentionArgs {
    const float* query;    // [num_rows, num_query_heads * head_size], rows query_stride apart
    const char* keys;      // [num_blocks, block_bytes], as kv_cache.h says, blocks key_block_stride bytes apart
    const char* values;    // likewise
    float* out;            // as query, rows out_stride apart; may be `query`
    int64_t query_stride;  // in floats
    int64_t out_stride;
    int64_t key_block_stride;  // in bytes, multiples of 4
    int64_t value_block_stride;
    const int32_t* block_tables;  // [num_sequences, max_blocks]
    const int32_t* query_start;   // [num_sequences + 1]
    const int32_t* context_lens;  // [num_sequences]
    int64_t num_rows;
    int64_t num_sequences;
    int64_t max_blocks;
    int64_t num_blocks;
    CacheLayout cache;
    int64_t num_query_heads;
    int64_t sliding_window;  // 0: none
    float scale;
    float soft_cap;  // 0: none
};

// Positions are taken in parts of this many, which begin at its multiples from position 0. Each part is weighed and
// summed by itself, then the parts are put together from the first to the last: so the order in which a row is summed
// depends on its own position only, and parts may be computed by different threads.
constexpr int64_t part_size = 512;
// Most (row, query head of the group) pairs, "lines", that a task works on together; a larger group of heads makes a
// task of its own.
constexpr int64_t max_task_lines = 48;
// Floats from one line's queries (or sums) to the next one's in scratch memory: a constant, for cheap addresses; no
// multiple of 64 floats, for the cache.
constexpr int64_t line_stride = max_head_size + 16;

// Rows first_row .. first_row + num_rows - 1 of a sequence's new rows, for the query heads of some key/value heads, over
// some parts of the positions.
struct PagedAttentionTask {
    int32_t sequence;
    int32_t first_row;
    int32_t num_rows;
    int32_t first_head;  // key/value heads
    int32_t num_heads;
    int32_t first_part;
    int32_t num_parts;
    int32_t split;  // index of the PagedAttentionSplit that these parts belong to; -1: the task has all parts
};

// What several tasks compute together: the rows and the head of a task, and all their parts.
struct PagedAttentionSplit {
    PagedAttentionTask whole;
    int64_t offset;  // in floats, of its results: for each part and line, sums, largest score and sum of weights
    int32_t num_tasks;
};

constexpr int64_t split_line_floats = line_stride + 16;

// One instruction set's functions (paged_attention_kernel.h).
struct PagedAttentionKernel {
    // Of scratch memory for a task of so many lines.
    int64_t (*scratch_bytes)(int64_t num_lines);
    // Computes a task: to args.out, or to `results`, those of the split that it belongs to.
    void (*attend)(const PagedAttentionArgs& args, const PagedAttentionTask& task, char* scratch, float* results);
    // Puts all parts of a split together, to args.out.
    void (*merge)(const PagedAttentionArgs& args, const PagedAttentionTask& whole, const float* results);
};

// The operation with its plan. One object serves any number of layers, one call at a time.
class PagedAttention {
  public:
    // Checks a step's tables and sizes, and divides its work. The arrays must not change until the runs are done.
    // Throws std::invalid_argument, naming what is wrong.
    void plan(const PagedAttentionArgs& args, int num_threads);

    // Computes one layer of the planned step: args are the plan's but for query, keys, values, out, their strides, the
    // scale and the soft cap's size. The caller holds runtime.turn().
    void run(Runtime& runtime, const PagedAttentionArgs& args);

  private:
    void add_task(const PagedAttentionTask& task, int64_t work);
    void sort_tasks();

    std::vector<PagedAttentionTask> tasks_;  // the longest first
    std::vector<int64_t> work_;              // of each task
    std::vector<PagedAttentionTask> sorted_;
    std::vector<PagedAttentionSplit> splits_;
    std::unique_ptr<std::atomic<int32_t>[]> open_;  // tasks of each split that have not ended
    size_t open_capacity_ = 0;
    std::vector<float> results_;  // of the splits
    int64_t max_lines_ = 0;       // of a task
};

}  // namespace paged_backend
