// Operations on rows of activations, each row by itself: norms, embedding, choice of rows, soft cap, and queries, keys
// and values on their way to the cache. Plain pointers and sizes; strides in floats.
#pragma once

#include <cstdint>

#include "kv_cache.h"

namespace paged_backend {

class Runtime;

// RMS norm and layer norm; out may be x.
struct NormArgs {
    const float* x;
    int64_t x_stride;
    float* out;
    int64_t out_stride;
    const float* weight;  // [width], or null for 1
    const float* bias;    // [width], or null for 0
    int64_t num_rows;
    int64_t width;
    float eps;
};

enum class TableDtype { float32, bfloat16, float16 };

// out = table[indices] + add
struct EmbeddingArgs {
    const void* table;  // [num_indices, width], contiguous
    TableDtype dtype;
    const int64_t* indices;  // [num_rows]
    const float* add;        // or null; may be out
    int64_t add_stride;
    float* out;
    int64_t out_stride;
    int64_t num_rows;
    int64_t width;
};

// out = x[indices], or all rows where indices is null
struct SelectRowsArgs {
    const float* x;
    int64_t x_stride;
    const int64_t* indices;
    float* out;
    int64_t out_stride;
    int64_t num_rows;  // of out
    int64_t width;
};

// out = cap * tanh(x / cap); out may be x
struct SoftCapArgs {
    const float* x;
    int64_t x_stride;
    float* out;
    int64_t out_stride;
    int64_t num_rows;
    int64_t width;
    float cap;
};

// Norms and turns queries and keys, and stores keys and values at the slots.
struct QkvToCacheArgs {
    const float* qkv;  // [num_rows, (num_heads + 2 * num_kv_heads) * head_size]
    int64_t qkv_stride;
    float* query;  // [num_rows, num_heads * head_size]; may be qkv
    int64_t query_stride;
    int64_t num_rows;
    int64_t num_heads;
    const int64_t* slots;      // [num_rows]
    const int64_t* positions;  // [num_rows]; used with cos alone
    const float* cos;          // [positions, num_rotated], or null
    const float* sin;
    int64_t num_rotated;  // even, at most head_size
    const float* query_norm;  // [head_size], or null
    const float* key_norm;
    float norm_eps;
    CacheLayout cache;
    char* keys;  // [blocks, block_bytes], blocks key_block_stride bytes apart
    char* values;
    int64_t key_block_stride;
    int64_t value_block_stride;
};

// What an instruction set provides (rows_kernel.h): rows first .. end - 1 of a call.
struct RowKernels {
    void (*rms_norm)(const NormArgs& args, int64_t first, int64_t end);
    void (*layer_norm)(const NormArgs& args, int64_t first, int64_t end);
    void (*embedding)(const EmbeddingArgs& args, int64_t first, int64_t end);
    void (*soft_cap)(const SoftCapArgs& args, int64_t first, int64_t end);
    void (*qkv_to_cache)(const QkvToCacheArgs& args, int64_t first, int64_t end);
};

// Few rows are computed by the caller alone, many by the runtime's team. The caller holds runtime.turn(), and has
// checked all indices.
void rms_norm(Runtime& runtime, const NormArgs& args);
void layer_norm(Runtime& runtime, const NormArgs& args);
void embedding(Runtime& runtime, const EmbeddingArgs& args);
void select_rows(Runtime& runtime, const SelectRowsArgs& args);
void soft_cap(Runtime& runtime, const SoftCapArgs& args);
void qkv_to_cache(Runtime& runtime, const QkvToCacheArgs& args);

}  // namespace paged_backend
