// A step's operations, recorded once and run many times: one call a step instead of one for each operation.
//
// An operation takes and gives buffers, [rows, width] of float32, by number. Pointers to weights, tables and caches
// stay the caller's, who keeps them until the program is gone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "aligned_memory.h"
#include "buffer_plan.h"
#include "kv_cache.h"
#include "linear.h"
#include "paged_attention.h"
#include "rows.h"

namespace paged_backend {

class Runtime;

// One step, as kernels/interface.py's StepInputs. What a program does not use may be null.
struct StepArrays {
    const int64_t* token_ids = nullptr;
    const int64_t* positions = nullptr;
    const int64_t* slots = nullptr;         // [num_groups, num_rows]
    const int32_t* block_tables = nullptr;  // [num_groups, num_sequences, max_blocks]
    const int32_t* query_start = nullptr;
    const int32_t* context_lens = nullptr;
    bool has_logits_rows = false;  // or all rows are wanted
    const int64_t* logits_rows = nullptr;
    int64_t num_rows = 0;
    int64_t num_sequences = 0;
    int64_t num_groups = 0;
    int64_t max_blocks = 0;
    int64_t num_logits_rows = 0;
};

enum class Indices { token_ids, positions };

struct EmbeddingTable {
    const void* data;  // [num_indices, width]
    TableDtype dtype;
    int64_t num_indices;
    int64_t width;
};

struct CacheTables {
    CacheLayout layout;
    char* keys;
    char* values;
    int64_t key_block_stride;  // in bytes
    int64_t value_block_stride;
    int64_t num_blocks;
    int64_t group;  // whose slots and block tables are this layer's
};

struct RotaryTables {
    const float* cos = nullptr;  // [num_positions, num_rotated], or null for no turn
    const float* sin = nullptr;
    int64_t num_positions = 0;
    int64_t num_rotated = 0;
};

struct HeadNorms {
    const float* query = nullptr;  // [head_size], or null for none
    const float* key = nullptr;
    float eps = 0.0f;
};

class Program {
  public:
    using Rows = BufferPlan::Rows;
    static constexpr int none = -1;  // instead of a buffer

    explicit Program(Runtime& runtime);
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // Recording. Each gives the number of the buffer that it fills; see kernels/interface.py for what is computed.
    // Throws std::invalid_argument, naming the argument, for a buffer or a size that does not fit; then nothing is
    // recorded.
    int input(int64_t width);
    int embedding(const EmbeddingTable& table, Indices indices, int add);
    int rms_norm(int x, const float* weight, int64_t size, float eps);
    int layer_norm(int x, const float* weight, const float* bias, int64_t size, float eps);
    int linear(int x, const PackedLinear& weight, Activation activation, int residual);
    int qkv_to_cache(int qkv, const CacheTables& cache, int64_t num_heads, const RotaryTables& rotary,
                     const HeadNorms& norms);
    int paged_attention(int query, const CacheTables& cache, float scale, int64_t sliding_window, float soft_cap);
    int select_rows(int x);
    int soft_cap(int x, float cap);
    // Ends the recording: what a run gives.
    void finish(const std::vector<int>& outputs);

    int64_t width(int buffer) const { return shape_of(buffer, "buffer").width; }
    bool has_logits_rows(int buffer) const { return shape_of(buffer, "buffer").rows == RowsOf::logits; }
    // Floats between rows that an output needs, at least.
    int64_t output_stride(int index) const;

    // Computes a step. inputs: num_rows rows each, copied; outputs: rows of the caller's memory, output_stride apart or
    // more. Takes runtime.turn(). Throws std::invalid_argument, before anything is written, for indices or tables that
    // are out of range; the program can be run again then.
    void run(const StepArrays& arrays, const std::vector<Rows>& inputs, const std::vector<Rows>& outputs);

    // Seconds spent in each kind of operation while `timed` was set.
    bool timed = false;
    std::map<std::string, double> seconds();  // takes runtime.turn()

    // What a node sees of a run.
    struct Step {
        Runtime& runtime;
        const StepArrays& arrays;
        const Rows* buffers;
        int64_t num_rows[num_row_kinds];
    };
    struct Node {
        virtual ~Node() = default;
        virtual void run(const Step& step) = 0;
        BufferUse use;
        std::string name;
    };

  private:
    struct AttentionPlan;
    struct Bounds {
        int64_t token_ids;
        int64_t positions;
        std::vector<int64_t> slots;  // by group
    };

    const BufferShape& shape_of(int buffer, const char* name) const;
    void require_like(int buffer, const char* name, int64_t width, RowsOf rows) const;
    int add_buffer(int64_t width, RowsOf rows);
    void add(std::unique_ptr<Node> node, const char* name);
    int add_norm(bool centred, int x, const float* weight, const float* bias, int64_t size, float eps);
    void require_recording() const;
    void require_group(int64_t group);
    void check(const StepArrays& arrays, const std::vector<Rows>& inputs, const std::vector<Rows>& outputs) const;

    Runtime& runtime_;
    std::vector<BufferShape> buffers_;
    std::vector<int> inputs_;
    std::vector<int> outputs_;
    std::vector<std::unique_ptr<Node>> nodes_;
    std::vector<std::unique_ptr<AttentionPlan>> attention_plans_;  // of layers that can share one
    Bounds bounds_;                                                // of the indices of a step
    bool selects_rows_ = false;
    bool is_finished_ = false;
    BufferPlan plan_;
    AlignedMemory memory_;
    std::vector<Rows> places_;
    std::map<std::string, double> seconds_;
};

}  // namespace paged_backend
