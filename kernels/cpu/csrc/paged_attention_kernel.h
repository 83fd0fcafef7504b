// One task of paged attention, written once in vectors of PAGED_BACKEND_LANES floats. Each paged_attention_<set>.cpp
// includes this file, compiled for its instruction set. Online softmax over tiles of keys (arXiv:2205.14135, 3.1).
//
// Every output row is summed in one order: keys within a tile by their place, tiles from the first to the last, products
// of a dot product by their place in the head. What else is in the task, and which tiles a row does not see at all, does
// not enter: keys that a row does not see get the weight 0, which changes no bit of a sum.
#pragma once

#include "paged_attention.h"
#include "simd.h"

namespace paged_backend {
namespace {

// "Lines" are the (row, query head of the group) pairs of a task; they share the task's keys and values.
struct Workspace {
    float* queries;       // [lines, width]
    float* sums;          // [lines, width]: weighted values
    float* weights;       // [lines, tile_size]: scores, then weights
    float* keys;          // [head_size, tile_size]: a tile of keys, a key in each column
    float* values;        // [tile_size, width]
    float* largest;       // [lines]: largest score
    float* weight_sums;   // [lines]
    int64_t width;        // head size, rounded up to whole vectors; what is past the head size is 0
};

struct Tile {
    int64_t position;  // of its first key
    int64_t begin;     // keys begin .. end - 1 of the tile are seen by some row of the task; others are not read
    int64_t end;
};

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

inline Workspace lay_out(float* scratch, int64_t lines, int64_t head_size) {
    Workspace space;
    space.width = (head_size + lanes - 1) / lanes * lanes;
    space.queries = scratch;
    space.sums = space.queries + lines * space.width;
    space.weights = space.sums + lines * space.width;
    space.keys = space.weights + lines * tile_size;
    space.values = space.keys + tile_size * space.width;
    space.largest = space.values + tile_size * space.width;
    space.weight_sums = space.largest + lines;
    return space;
}

template <class T>
void load_queries(const PagedAttentionArgs& args, const PagedAttentionTask& task, const Workspace& space) {
    const int64_t group = args.num_query_heads / args.num_kv_heads;
    const int64_t first_row = args.query_start[task.sequence] + task.first_row;
    float* to = space.queries;
    for (int64_t row = first_row; row < first_row + task.num_rows; ++row) {
        const T* from =
            static_cast<const T*>(args.query) + row * args.query_row_stride + task.kv_head * group * args.head_size;
        for (int64_t head = 0; head < group; ++head, from += args.head_size, to += space.width) {
            for (int64_t i = 0; i < args.head_size; ++i) to[i] = to_float(from[i]);
        }
    }
}

// Calls use(run, first_place, length) for the stretches of a tile that lie in one block.
template <class T, class Use>
void for_each_run(const PagedAttentionArgs& args, const PagedAttentionTask& task, const void* cache,
                  int64_t block_stride, const Tile& tile, const Use& use) {
    const int32_t* table = args.block_tables + task.sequence * args.max_blocks;
    for (int64_t place = tile.begin; place < tile.end;) {
        const int64_t position = tile.position + place;
        const int64_t offset = position % args.block_size;
        const int64_t length = min_of(args.block_size - offset, tile.end - place);
        const T* block = static_cast<const T*>(cache) + table[position / args.block_size] * block_stride;
        use(block + (task.kv_head * args.block_size + offset) * args.head_size, place, length);
        place += length;
    }
}

// Keys are turned so that a vector holds one number of several keys: no sum then crosses the lanes of a vector.
template <class T>
void load_keys(const PagedAttentionArgs& args, const PagedAttentionTask& task, const Tile& tile, float* keys) {
    const int64_t head_size = args.head_size;
    const auto turn = [&](const T* from, int64_t place, int64_t length) {
        int64_t key = 0;
        if (lanes >= 8) {
            for (; key + 8 <= length; key += 8) {
                int64_t i = 0;
                for (; i + 8 <= head_size; i += 8) {
                    Floats8 rows[8];
                    for (int64_t j = 0; j < 8; ++j) rows[j] = load8(from + (key + j) * head_size + i);
                    transpose8(rows);
                    for (int64_t j = 0; j < 8; ++j) store8(rows[j], keys + (i + j) * tile_size + place + key);
                }
                for (; i < head_size; ++i) {
                    for (int64_t j = 0; j < 8; ++j) {
                        keys[i * tile_size + place + key + j] = to_float(from[(key + j) * head_size + i]);
                    }
                }
            }
        }
        for (; key < length; ++key) {
            for (int64_t i = 0; i < head_size; ++i) {
                keys[i * tile_size + place + key] = to_float(from[key * head_size + i]);
            }
        }
    };
    for_each_run<T>(args, task, args.key_cache, args.key_block_stride, tile, turn);
}

template <class T>
void load_values(const PagedAttentionArgs& args, const PagedAttentionTask& task, const Tile& tile,
                 const Workspace& space) {
    const int64_t head_size = args.head_size;
    const auto widen = [&](const T* from, int64_t place, int64_t length) {
        for (int64_t key = 0; key < length; ++key, from += head_size) {
            float* to = space.values + (place + key) * space.width;
            int64_t i = 0;
            for (; i + 8 <= head_size; i += 8) store8(load8(from + i), to + i);
            for (; i < head_size; ++i) to[i] = to_float(from[i]);
        }
    };
    for_each_run<T>(args, task, args.value_cache, args.value_block_stride, tile, widen);
}

// Dot products of some lines' queries with all keys of the tile.
template <int num_lines>
void score_lines(const Workspace& space, int64_t line, int64_t head_size) {
    const float* queries = space.queries + line * space.width;
    float* weights = space.weights + line * tile_size;
    for (int64_t column = 0; column < tile_size; column += 2 * lanes) {
        Floats left[num_lines] = {};
        Floats right[num_lines] = {};
        const float* keys = space.keys + column;
        for (int64_t i = 0; i < head_size; ++i, keys += tile_size) {
            const Floats left_keys = load(keys);
            const Floats right_keys = load(keys + lanes);
            for (int l = 0; l < num_lines; ++l) {
                const float query = queries[l * space.width + i];
                left[l] += query * left_keys;
                right[l] += query * right_keys;
            }
        }
        for (int l = 0; l < num_lines; ++l) {
            store(left[l], weights + l * tile_size + column);
            store(right[l], weights + l * tile_size + column + lanes);
        }
    }
}

// Adds the tile's values, weighted, to some lines' sums.
template <int num_lines, int num_vectors>
void add_columns(const Workspace& space, int64_t line, int64_t column, const Tile& tile) {
    const float* weights = space.weights + line * tile_size;
    float* sums = space.sums + line * space.width + column;
    Floats sum[num_lines][num_vectors];
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) sum[l][v] = load(sums + l * space.width + v * lanes);
    }
    const float* values = space.values + tile.begin * space.width + column;
    for (int64_t key = tile.begin; key < tile.end; ++key, values += space.width) {
        for (int v = 0; v < num_vectors; ++v) {
            const Floats value = load(values + v * lanes);
            for (int l = 0; l < num_lines; ++l) sum[l][v] += weights[l * tile_size + key] * value;
        }
    }
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) store(sum[l][v], sums + l * space.width + v * lanes);
    }
}

template <int num_lines>
void add_values(const Workspace& space, int64_t line, const Tile& tile) {
    int64_t column = 0;
    for (; column + 2 * lanes <= space.width; column += 2 * lanes) add_columns<num_lines, 2>(space, line, column, tile);
    if (column < space.width) add_columns<num_lines, 1>(space, line, column, tile);
}

// Turns a line's scores into weights relative to its largest score so far, and brings its sums to the same scale.
inline void weigh_line(const PagedAttentionArgs& args, const Workspace& space, int64_t line, int64_t row_position,
                       const Tile& tile) {
    float* weights = space.weights + line * tile_size;
    // Places in the tile that this row sees: from `low` to `high` - 1.
    const int64_t window_begin = args.sliding_window ? row_position - args.sliding_window + 1 : 0;
    const int64_t low = max_of(window_begin - tile.position, 0);
    const int64_t high = min_of(row_position + 1 - tile.position, tile_size);
    if (low >= high) {
        for (int64_t key = 0; key < tile_size; key += lanes) store(Floats{}, weights + key);
        return;
    }
    const Floats nothing = broadcast(-__builtin_inff());
    const Ints lane = lane_numbers();
    Floats most = nothing;
    for (int64_t key = 0; key < tile_size; key += lanes) {
        Floats score = load(weights + key) * args.scale;
        if (args.soft_cap > 0.0f) score = args.soft_cap * tanh_of(score / args.soft_cap);
        const Ints place = lane + static_cast<int32_t>(key);
        const Ints seen = (place >= static_cast<int32_t>(low)) & (place < static_cast<int32_t>(high));
        score = select(seen, score, nothing);
        store(score, weights + key);
        most = larger(score, most);
    }
    const float before = space.largest[line];
    const float tile_most = largest_lane(most);
    const float largest = tile_most > before ? tile_most : before;
    Floats sum = {};
    for (int64_t key = 0; key < tile_size; key += lanes) {
        const Floats weight = exp_not_positive(load(weights + key) - largest);
        store(weight, weights + key);
        sum += weight;
    }
    const float shrink = exp_not_positive(broadcast(before - largest))[0];
    space.weight_sums[line] = space.weight_sums[line] * shrink + sum_lanes(sum);
    space.largest[line] = largest;
    if (largest > before) {
        float* sums = space.sums + line * space.width;
        for (int64_t i = 0; i < space.width; i += lanes) store(load(sums + i) * shrink, sums + i);
    }
}

constexpr int64_t lines_at_once = 6;

// Calls step(count, line) for all lines, as many at once as registers hold.
template <class Step>
void for_lines(int64_t num_lines, const Step& step) {
    for (int64_t line = 0; line < num_lines; line += lines_at_once) step(min_of(num_lines - line, lines_at_once), line);
}

inline void score_tile(const Workspace& space, int64_t num_lines, int64_t head_size) {
    for_lines(num_lines, [&](int64_t count, int64_t line) {
        switch (count) {
            case 6: return score_lines<6>(space, line, head_size);
            case 5: return score_lines<5>(space, line, head_size);
            case 4: return score_lines<4>(space, line, head_size);
            case 3: return score_lines<3>(space, line, head_size);
            case 2: return score_lines<2>(space, line, head_size);
            default: return score_lines<1>(space, line, head_size);
        }
    });
}

inline void add_tile(const Workspace& space, int64_t num_lines, const Tile& tile) {
    for_lines(num_lines, [&](int64_t count, int64_t line) {
        switch (count) {
            case 6: return add_values<6>(space, line, tile);
            case 5: return add_values<5>(space, line, tile);
            case 4: return add_values<4>(space, line, tile);
            case 3: return add_values<3>(space, line, tile);
            case 2: return add_values<2>(space, line, tile);
            default: return add_values<1>(space, line, tile);
        }
    });
}

template <class T>
void store_out(const PagedAttentionArgs& args, const PagedAttentionTask& task, const Workspace& space) {
    const int64_t group = args.num_query_heads / args.num_kv_heads;
    const int64_t first_row = args.query_start[task.sequence] + task.first_row;
    int64_t line = 0;
    for (int64_t row = first_row; row < first_row + task.num_rows; ++row) {
        T* to = static_cast<T*>(args.out) + (row * args.num_query_heads + task.kv_head * group) * args.head_size;
        for (int64_t head = 0; head < group; ++head, ++line, to += args.head_size) {
            const float* sums = space.sums + line * space.width;
            const float weight_sum = space.weight_sums[line];
            for (int64_t i = 0; i < args.head_size; ++i) store_float(sums[i] / weight_sum, to + i);
        }
    }
}

template <class CacheT>
void attend(const PagedAttentionArgs& args, const PagedAttentionTask& task, const Workspace& space, int64_t num_lines) {
    const int64_t group = args.num_query_heads / args.num_kv_heads;
    const int64_t sequence_rows = args.query_start[task.sequence + 1] - args.query_start[task.sequence];
    const int64_t first_position = args.context_lens[task.sequence] - sequence_rows + task.first_row;
    const int64_t keys_end = first_position + task.num_rows;
    const int64_t keys_begin = args.sliding_window ? max_of(0, first_position - args.sliding_window + 1) : 0;
    for (int64_t position = keys_begin / tile_size * tile_size; position < keys_end; position += tile_size) {
        const Tile tile = {position, max_of(keys_begin - position, 0), min_of(keys_end - position, tile_size)};
        load_keys<CacheT>(args, task, tile, space.keys);
        score_tile(space, num_lines, args.head_size);
        for (int64_t line = 0; line < num_lines; ++line) {
            weigh_line(args, space, line, first_position + line / group, tile);
        }
        load_values<CacheT>(args, task, tile, space);
        add_tile(space, num_lines, tile);
    }
}

inline void run_task(const PagedAttentionArgs& args, const PagedAttentionTask& task, float* scratch) {
    const int64_t num_lines = task.num_rows * (args.num_query_heads / args.num_kv_heads);
    const Workspace space = lay_out(scratch, num_lines, args.head_size);
    std::memset(space.sums, 0, sizeof(float) * static_cast<size_t>(num_lines * space.width));
    // What is past the head size in a vector must be a number: its products go nowhere, but are computed.
    for (int64_t key = 0; key < tile_size; ++key) {
        for (int64_t i = args.head_size; i < space.width; ++i) space.values[key * space.width + i] = 0.0f;
    }
    for (int64_t line = 0; line < num_lines; ++line) {
        space.largest[line] = -__builtin_inff();
        space.weight_sums[line] = 0.0f;
    }
    switch (args.query_dtype) {
        case Dtype::float32: load_queries<float>(args, task, space); break;
        case Dtype::bfloat16: load_queries<Bfloat16>(args, task, space); break;
        case Dtype::float16: load_queries<Float16>(args, task, space); break;
    }
    switch (args.cache_dtype) {
        case Dtype::float32: attend<float>(args, task, space, num_lines); break;
        case Dtype::bfloat16: attend<Bfloat16>(args, task, space, num_lines); break;
        case Dtype::float16: attend<Float16>(args, task, space, num_lines); break;
    }
    switch (args.query_dtype) {
        case Dtype::float32: store_out<float>(args, task, space); break;
        case Dtype::bfloat16: store_out<Bfloat16>(args, task, space); break;
        case Dtype::float16: store_out<Float16>(args, task, space); break;
    }
}

}  // namespace
}  // namespace paged_backend
