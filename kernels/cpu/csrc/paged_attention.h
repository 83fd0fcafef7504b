// Paged attention on the CPU: plain pointers and sizes in, no Python and no torch.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "thread_team.h"

namespace paged_backend {

enum class Dtype { float32, bfloat16, float16 };

// One call. Pointers stay the caller's and must live until the call returns; strides are in elements.
struct PagedAttentionArgs {
    const void* query;          // [num_rows, num_query_heads, head_size], rows query_row_stride apart
    const void* key_cache;      // [num_blocks, num_kv_heads, block_size, head_size], blocks key_block_stride apart
    const void* value_cache;    // the same shape, blocks value_block_stride apart
    void* out;                  // [num_rows, num_query_heads, head_size], contiguous, of the query's dtype
    const int32_t* block_tables;  // [num_sequences, max_blocks]
    const int32_t* query_start;   // [num_sequences + 1]
    const int32_t* context_lens;  // [num_sequences]
    Dtype query_dtype;
    Dtype cache_dtype;
    int64_t query_row_stride;
    int64_t key_block_stride;
    int64_t value_block_stride;
    int64_t num_rows;
    int64_t num_sequences;
    int64_t max_blocks;
    int64_t num_blocks;
    int64_t num_query_heads;
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t head_size;
    int64_t sliding_window;  // 0: none
    float scale;
    float soft_cap;  // 0: none
};

// The rows first_row .. first_row + num_rows - 1 of a sequence's new rows, for the query heads of one key/value head.
struct PagedAttentionTask {
    int32_t sequence;
    int32_t kv_head;
    int32_t first_row;
    int32_t num_rows;
};

// Keys are taken in tiles of this many positions, which begin at multiples of it from position 0. So the order in which
// a row is summed depends on its own position only.
constexpr int64_t tile_size = 32;
constexpr int64_t max_head_size = 256;
// Most (row, head of the group) pairs that a task works on together; a group larger than this makes a task of its own.
constexpr int64_t max_task_lines = 48;
constexpr int64_t scratch_alignment = 64;

// Computes one task. `scratch` holds paged_attention_scratch_floats() floats, aligned to scratch_alignment bytes.
using PagedAttentionKernel = void (*)(const PagedAttentionArgs&, const PagedAttentionTask&, float* scratch);

int64_t paged_attention_scratch_floats(int64_t num_query_heads, int64_t num_kv_heads, int64_t head_size);

// The operation with its threads and its memory. Calls from several threads take turns.
class PagedAttention {
  public:
    // instruction_set: one of available_instruction_sets(), or "auto" for the first of them.
    // Throws std::invalid_argument when it is none of them.
    PagedAttention(int num_threads, const std::string& instruction_set);

    // Throws std::invalid_argument, before anything is computed, when a table or a size is wrong.
    void run(const PagedAttentionArgs& args);

    int num_threads() const { return team_.size(); }
    const std::string& instruction_set() const { return instruction_set_; }

  private:
    float* scratch_of(int thread) const;

    ThreadTeam team_;
    std::string instruction_set_;
    PagedAttentionKernel kernel_;
    std::mutex turn_;
    std::vector<PagedAttentionTask> tasks_;
    std::unique_ptr<float[]> scratch_;
    int64_t scratch_floats_ = 0;
};

// What this processor can run, the fastest first; "portable" is always there.
std::vector<std::string> available_instruction_sets();

// One of these per instruction set, each in a file that is compiled for it (see paged_attention_kernel.h).
void paged_attention_task_portable(const PagedAttentionArgs&, const PagedAttentionTask&, float* scratch);
void paged_attention_task_avx2(const PagedAttentionArgs&, const PagedAttentionTask&, float* scratch);
void paged_attention_task_avx512(const PagedAttentionArgs&, const PagedAttentionTask&, float* scratch);

}  // namespace paged_backend
