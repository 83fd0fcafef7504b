// One task of paged attention, written once in vectors of PAGED_BACKEND_LANES floats. Softmax by parts of the positions,
// put together as in arXiv:2205.14135, 3.1.
//
// Every output row is summed in one order: products of a dot product by their place in the head, weighted values of a
// part by position, parts from the first to the last (paged_attention.h). What else is in the task, and which part of it
// is computed where, does not enter: keys that a row does not see get the weight 0, which changes no bit of a sum. (If a
// later row of the same sequence has values that are infinite or not numbers, they may spread to the rows beside it.)
#pragma once

#include "attention_products_kernel.h"
#include "attention_softmax_kernel.h"
#include "paged_attention.h"

namespace paged_backend {
namespace {
namespace attention {

// --- Memory ------------------------------------------------------------------------------------------------------------

constexpr int64_t max_runs = part_size + 1 + max_ahead;
constexpr int64_t num_stripes = part_size / stripe_size;

// A thread's memory for one task. Arrays over lines are line_stride or weight_stride apart.
struct Workspace {
    float* queries;             // times what makes their products logarithms to base 2
    float* weights;             // of a part: scores, then weights
    float* part_sums;           // of a part: weighted values
    float* sums;                // of all parts so far
    float* part_largest;        // per line
    float* part_weight_sums;    // per line; 0 where it sees nothing of the part
    float* largest;             // per line
    float* weight_sums;         // per line
    float* key_scales;          // per position of a part
    float* value_scales;        // per position of a part
    float* packed_keys;         // [head_size, tile_size], for block sizes that are no multiple of a vector
    float* packed_values;       // [stripe_size, lanes], for heads smaller than a vector
    const char** key_vectors;   // where each vector of a part's keys begins, and then some values
    Run* runs;
};

// Lays out a task's memory from an address on, and gives its end.
inline uintptr_t lay_out(uintptr_t scratch, int64_t num_lines, Workspace* space) {
    uintptr_t end = scratch;
    const auto take = [&](int64_t bytes) {
        const uintptr_t begin = end;
        end += static_cast<uintptr_t>(round_up(bytes, 64));
        return begin;
    };
    const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
    space->queries = floats(num_lines * line_stride);
    space->weights = floats(num_lines * weight_stride);
    space->part_sums = floats(num_lines * line_stride);
    space->sums = floats(num_lines * line_stride);
    space->part_largest = floats(num_lines);
    space->part_weight_sums = floats(num_lines);
    space->largest = floats(num_lines);
    space->weight_sums = floats(num_lines);
    space->key_scales = floats(part_size);
    space->value_scales = floats(part_size);
    space->packed_keys = floats(max_head_size * tile_size);
    space->packed_values = floats(stripe_size * lanes);
    space->key_vectors = reinterpret_cast<const char**>(
        take((part_size / lanes + max_ahead) * static_cast<int64_t>(sizeof(char*))));
    space->runs = reinterpret_cast<Run*>(take(max_runs * static_cast<int64_t>(sizeof(Run))));
    return end;
}

inline int64_t scratch_bytes(int64_t num_lines) {
    Workspace space;
    return static_cast<int64_t>(lay_out(0, num_lines, &space));
}

// --- A task -----------------------------------------------------------------------------------------------------------

// The position of a task's first row.
inline int64_t first_position_of(const PagedAttentionArgs& args, const PagedAttentionTask& task) {
    const int64_t num_rows = args.query_start[task.sequence + 1] - args.query_start[task.sequence];
    return args.context_lens[task.sequence] - num_rows + task.first_row;
}

// Goes through a sequence's blocks.
class Walk {
  public:
    Walk(const int32_t* table, int64_t position, int64_t block_size)
        : table_(table + position / block_size), offset_(position % block_size), block_size_(block_size) {}

    int64_t block() const { return *table_; }
    int64_t offset() const { return offset_; }  // in the block

    void advance(int64_t count) {
        for (offset_ += count; offset_ >= block_size_; offset_ -= block_size_) ++table_;
    }

  private:
    const int32_t* table_;
    int64_t offset_;
    const int64_t block_size_;
};

// A task's rows for one key/value head.
template <class T>
class Head {
  public:
    Head(const PagedAttentionArgs& args, const PagedAttentionTask& task, const PagedAttentionTask& next_task, int64_t head,
         const Workspace& space)
        : args_(args),
          task_(task),
          next_task_(next_task),
          space_(space),
          head_(head),
          group_(args.num_query_heads / args.cache.num_kv_heads),
          num_lines_(task.num_rows * group_),
          head_size_(args.cache.head_size),
          block_size_(args.cache.block_size),
          width_(max_of(head_size_, lanes)),
          first_position_(first_position_of(args, task)),
          keys_ahead_(ahead(head_size_ * lanes)),
          values_ahead_(ahead(head_size_ * min_of(block_size_, stripe_size))) {}

    void load_queries() {
        const double log2_e = 1.4426950408889634;
        const double factor = args_.soft_cap > 0.0f ? static_cast<double>(args_.scale) / args_.soft_cap : args_.scale * log2_e;
        const float scale = static_cast<float>(factor);
        float* to = space_.queries;
        for (int64_t row = 0; row < task_.num_rows; ++row) {
            const float* from = args_.query + first_place(row, args_.query_stride);
            for (int64_t line = 0; line < group_; ++line, from += head_size_, to += line_stride) {
                for (int64_t i = 0; i < head_size_; ++i) to[i] = from[i] * scale;
            }
        }
        for (int64_t line = 0; line < num_lines_; ++line) space_.weight_sums[line] = 0.0f;
    }

    // The part's sums and weights, of all lines.
    void attend(int64_t part) {
        part_begin_ = part * part_size;
        seen_ = seen_by(0, num_lines_);
        find_keys_and_values();
        score_part();
        if (has_scales()) load_scales();
        for_lines(num_lines_, [&](int64_t count, int64_t line) { weigh_lines(count, line); });
        add_part();
    }

    // To those of the parts before it.
    void merge() {
        for (int64_t line = 0; line < num_lines_; ++line) {
            merge_part(space_.part_largest[line], space_.part_weight_sums[line], space_.part_sums + line * line_stride,
                       width_, space_.largest + line, space_.weight_sums + line, space_.sums + line * line_stride);
        }
    }

    void store_out() const {
        for (int64_t line = 0; line < num_lines_; ++line) {
            float* to = args_.out + first_place(line / group_, args_.out_stride) + line % group_ * head_size_;
            store_line(space_.sums + line * line_stride, space_.weight_sums[line], head_size_, to);
        }
    }

    // The part's results, for merge_results.
    void store_part(float* results) const {
        for (int64_t line = 0; line < num_lines_; ++line, results += split_line_floats) {
            for (int64_t i = 0; i < width_; i += lanes) store(load(space_.part_sums + line * line_stride + i), results + i);
            results[line_stride] = space_.part_largest[line];
            results[line_stride + 1] = space_.part_weight_sums[line];
        }
    }

    void merge_results(const float* results) const {
        for (int64_t line = 0; line < num_lines_; ++line) {
            float sums[line_stride];
            float largest = 0.0f;
            float weight_sum = 0.0f;
            for (int64_t part = 0; part < task_.num_parts; ++part) {
                const float* from = results + (part * num_lines_ + line) * split_line_floats;
                merge_part(from[line_stride], from[line_stride + 1], from, width_, &largest, &weight_sum, sums);
            }
            float* to = args_.out + first_place(line / group_, args_.out_stride) + line % group_ * head_size_;
            store_line(sums, weight_sum, head_size_, to);
        }
    }

    int64_t num_lines() const { return num_lines_; }

  private:
    static constexpr int64_t number_bytes = static_cast<int64_t>(sizeof(T));

    // How many pieces of so many numbers to fetch before they are read.
    static int64_t ahead(int64_t numbers) { return max_of(1, min_of(bytes_ahead / (numbers * number_bytes), max_ahead)); }

    int64_t first_place(int64_t row, int64_t stride) const {
        return (args_.query_start[task_.sequence] + task_.first_row + row) * stride + head_ * group_ * head_size_;
    }

    // What lines line .. line + count - 1 see of the part, together.
    Range seen_by(int64_t line, int64_t count) const {
        const int64_t first = first_position_ + line / group_ - part_begin_;
        const int64_t last = first_position_ + (line + count - 1) / group_ - part_begin_;
        return {args_.sliding_window ? max_of(first - args_.sliding_window + 1, 0) : 0, min_of(last + 1, part_size)};
    }

    bool has_whole_vectors() const { return block_size_ % lanes == 0; }
    bool has_scales() const { return args_.cache.dtype == CacheDtype::int8; }

    const int32_t* table_of(const PagedAttentionTask& task) const {
        return args_.block_tables + task.sequence * args_.max_blocks;
    }

    const char* key_block(int64_t number) const { return args_.keys + number * args_.key_block_stride; }
    const char* value_block(int64_t number) const { return args_.values + number * args_.value_block_stride; }

    void find_keys_and_values() {
        const int64_t head_numbers = head_ * block_size_ * head_size_;
        if (has_whole_vectors()) {
            Walk walk(table_of(task_), part_begin_ + seen_.first_vector() * lanes, block_size_);
            for (int64_t v = seen_.first_vector(); v < seen_.end_vector(); ++v, walk.advance(lanes)) {
                space_.key_vectors[v] = key_block(walk.block()) + (head_numbers + walk.offset()) * number_bytes;
            }
        }
        const int64_t scales = scales_offset(args_.cache) + head_ * block_size_ * 4;
        num_runs_ = 0;
        int64_t place = seen_.low;
        Walk walk(table_of(task_), part_begin_ + place, block_size_);
        for (int64_t stripe = 0; stripe < num_stripes; ++stripe) {
            stripe_runs_[stripe] = num_runs_;
            const int64_t stripe_end = min_of((stripe + 1) * stripe_size, seen_.high);
            while (place < stripe_end) {
                const int64_t length = min_of(block_size_ - walk.offset(), stripe_end - place);
                Run& run = space_.runs[num_runs_++];
                run.first = place;
                run.end = place + length;
                run.values = value_block(walk.block()) + (head_numbers + walk.offset() * head_size_) * number_bytes;
                if (has_scales()) {
                    run.key_scales = key_block(walk.block()) + scales + walk.offset() * 4;
                    run.value_scales = value_block(walk.block()) + scales + walk.offset() * 4;
                    fetch(run.key_scales);
                    fetch(run.value_scales);
                }
                place += length;
                walk.advance(length);
            }
        }
        stripe_runs_[num_stripes] = num_runs_;
        find_what_comes_next();
    }

    // After the last keys come the first values; after the last values the keys of the next part, head or task.
    void find_what_comes_next() {
        for (int64_t v = 0; v < keys_ahead_; ++v) {
            space_.key_vectors[seen_.end_vector() + v] = space_.runs[min_of(v, num_runs_ - 1)].values;
        }
        const PagedAttentionTask* task = &task_;
        int64_t head = head_;
        int64_t part = part_begin_ / part_size + 1;
        if (part == task->first_part + task->num_parts) {
            if (++head == task->first_head + task->num_heads) {
                task = &next_task_;
                head = task->first_head;
            }
            part = task->first_part;
        }
        const int64_t last = args_.context_lens[task->sequence] - 1;
        const int64_t seen = first_position_of(args_, *task) - args_.sliding_window + 1;
        int64_t position = max_of(part * part_size, args_.sliding_window ? seen : 0);
        if (has_whole_vectors()) position = position / lanes * lanes;
        Walk walk(table_of(*task), position, block_size_);
        for (int64_t v = 0; v < values_ahead_; ++v) {
            space_.runs[num_runs_ + v].values =
                key_block(walk.block()) + (head * block_size_ * head_size_ + walk.offset()) * number_bytes;
            position += lanes;
            if (position <= last) walk.advance(lanes);
        }
    }

    void load_scales() {
        for (int64_t r = 0; r < num_runs_; ++r) {
            const Run& run = space_.runs[r];
            const auto bytes = static_cast<size_t>(run.end - run.first) * 4;
            std::memcpy(space_.key_scales + run.first, run.key_scales, bytes);
            std::memcpy(space_.value_scales + run.first, run.value_scales, bytes);
        }
    }

    // Keys of a tile as floats, [head_size, tile_size]. What is not seen stays anything.
    void pack_keys(int64_t tile) {
        const int64_t end = min_of(tile + tile_size, seen_.high);
        int64_t place = max_of(tile, seen_.low);
        for (Walk walk(table_of(task_), part_begin_ + place, block_size_); place < end;) {
            const int64_t length = min_of(block_size_ - walk.offset(), end - place);
            const T* from = reinterpret_cast<const T*>(key_block(walk.block())) + head_ * block_size_ * head_size_ + walk.offset();
            float* to = space_.packed_keys + place - tile;
            for (int64_t i = 0; i < head_size_; ++i, from += block_size_, to += tile_size) {
                for (int64_t key = 0; key < length; ++key) to[key] = to_float(from[key]);
            }
            place += length;
            walk.advance(length);
        }
    }

    void score_part() {
        for (int64_t tile = seen_.low / tile_size * tile_size; tile < seen_.high; tile += tile_size) {
            const char* packed[vectors_at_once];
            if (!has_whole_vectors()) {
                pack_keys(tile);
                for (int64_t v = 0; v < vectors_at_once; ++v) {
                    packed[v] = reinterpret_cast<const char*>(space_.packed_keys + v * lanes);
                }
            }
            for_lines(num_lines_, [&](int64_t count, int64_t line) {
                const Range range = seen_by(line, count);
                const int64_t first = max_of(range.first_vector(), tile / lanes);
                const int64_t end = min_of(range.end_vector(), tile / lanes + vectors_at_once);
                if (range.is_empty() || first >= end) return;
                const float* queries = space_.queries + line * line_stride;
                float* scores = space_.weights + line * weight_stride + first * lanes;
                if (has_whole_vectors()) {
                    const Keys keys = {space_.key_vectors + first, space_.key_vectors + first + keys_ahead_, block_size_};
                    score<T>(count, end - first, keys, queries, head_size_, scores);
                } else {
                    const char* const* vectors = packed + (first - tile / lanes);
                    score<float>(count, end - first, {vectors, vectors, tile_size}, queries, head_size_, scores);
                }
            });
        }
    }

    void weigh_lines(int64_t count, int64_t line) {
        const Range filled = seen_by(line, count);
        const bool has_soft_cap = args_.soft_cap > 0.0f;
        const Weighing weighing = {space_.key_scales, space_.value_scales, args_.soft_cap * 1.44269504088896341f};
        const auto function = has_scales() ? (has_soft_cap ? weigh<true, true> : weigh<true, false>)
                                         : (has_soft_cap ? weigh<false, true> : weigh<false, false>);
        for (int64_t l = line; l < line + count; ++l) {
            function(weighing, seen_by(l, 1), filled, space_.weights + l * weight_stride, space_.part_largest + l,
                     space_.part_weight_sums + l);
        }
    }

    void add_part() {
        for (int64_t line = 0; line < num_lines_; ++line) {
            float* sums = space_.part_sums + line * line_stride;
            for (int64_t i = 0; i < width_; i += lanes) store(Floats{}, sums + i);
        }
        for (int64_t stripe = 0; stripe < num_stripes; ++stripe) {
            const Run* runs = space_.runs + stripe_runs_[stripe];
            const int64_t num_runs = stripe_runs_[stripe + 1] - stripe_runs_[stripe];
            if (num_runs == 0) continue;
            Run packed;
            if (head_size_ < lanes) packed = pack_values(runs, num_runs);
            for_lines(num_lines_, [&](int64_t count, int64_t line) {
                const Range range = seen_by(line, count);
                if (range.is_empty()) return;
                const float* weights = space_.weights + line * weight_stride;
                float* sums = space_.part_sums + line * line_stride;
                if (head_size_ < lanes) {
                    add<float>(count, {&packed, &packed + 1, 0, range.low, range.high, lanes}, lanes, weights, sums);
                } else {
                    add<T>(count, {runs, runs + num_runs, values_ahead_, range.low, range.high, head_size_}, head_size_, weights, sums);
                }
            });
        }
    }

    // A stripe's values as floats, a vector each.
    Run pack_values(const Run* runs, int64_t num_runs) {
        const int64_t first = runs[0].first;
        for (int64_t r = 0; r < num_runs; ++r) {
            const T* from = reinterpret_cast<const T*>(runs[r].values);
            for (int64_t key = runs[r].first; key < runs[r].end; ++key, from += head_size_) {
                float* to = space_.packed_values + (key - first) * lanes;
                store(Floats{}, to);
                for (int64_t i = 0; i < head_size_; ++i) to[i] = to_float(from[i]);
            }
        }
        return {first, runs[num_runs - 1].end, reinterpret_cast<const char*>(space_.packed_values), nullptr, nullptr};
    }

    const PagedAttentionArgs& args_;
    const PagedAttentionTask& task_;
    const PagedAttentionTask& next_task_;
    const Workspace& space_;
    const int64_t head_;
    const int64_t group_;  // query heads of the key/value head
    const int64_t num_lines_;
    const int64_t head_size_;
    const int64_t block_size_;
    const int64_t width_;  // of a line's sums
    const int64_t first_position_;
    const int64_t keys_ahead_;    // vectors
    const int64_t values_ahead_;  // runs
    // Of the present part:
    int64_t part_begin_ = 0;
    Range seen_ = {0, 0};  // by any line
    int64_t num_runs_ = 0;
    int64_t stripe_runs_[num_stripes + 1];  // the first run of each stripe
};

template <class T>
void attend_task(const PagedAttentionArgs& args, const PagedAttentionTask& task, const PagedAttentionTask& next_task,
                 const Workspace& space, float* results) {
    for (int64_t head = task.first_head; head < task.first_head + task.num_heads; ++head) {
        Head<T> rows(args, task, next_task, head, space);
        rows.load_queries();
        for (int64_t part = task.first_part; part < task.first_part + task.num_parts; ++part) {
            rows.attend(part);
            if (task.split < 0) {
                rows.merge();
            } else {
                rows.store_part(results);
                results += rows.num_lines() * split_line_floats;
            }
        }
        if (task.split < 0) rows.store_out();
    }
}

inline void run_task(const PagedAttentionArgs& args, const PagedAttentionTask& task, const PagedAttentionTask& next_task,
                     char* scratch, float* results) {
    Workspace space;
    lay_out(reinterpret_cast<uintptr_t>(scratch), task.num_rows * (args.num_query_heads / args.cache.num_kv_heads), &space);
    switch (args.cache.dtype) {
        case CacheDtype::float32: return attend_task<float>(args, task, next_task, space, results);
        case CacheDtype::bfloat16: return attend_task<Bfloat16>(args, task, next_task, space, results);
        case CacheDtype::float16: return attend_task<Float16>(args, task, next_task, space, results);
        case CacheDtype::int8: return attend_task<int8_t>(args, task, next_task, space, results);
    }
}

inline void merge_results(const PagedAttentionArgs& args, const PagedAttentionTask& whole, const float* results) {
    Head<float>(args, whole, whole, whole.first_head, Workspace()).merge_results(results);
}

}  // namespace attention

constexpr PagedAttentionKernel paged_attention_kernel = {attention::scratch_bytes, attention::run_task,
                                                         attention::merge_results};

}  // namespace
}  // namespace paged_backend
