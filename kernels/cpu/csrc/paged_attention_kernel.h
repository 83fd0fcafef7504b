// One task of paged attention, written once in vectors of PAGED_BACKEND_LANES floats. Softmax by parts of the positions,
// put together as in arXiv:2205.14135, 3.1.
//
// Every output row is summed in one order: products of a dot product by their place in the head, weighted values of a
// part by position, parts from the first to the last (paged_attention.h). What else is in the task, and which part of it
// is computed where, does not enter: keys that a row does not see get the weight 0, which changes no bit of a sum. (If a
// later row of the same sequence has values that are infinite or not numbers, they may spread to the rows beside it.)
#pragma once

#include "float_types.h"
#include "paged_attention.h"
#include "simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace paged_backend {
namespace {
namespace attention {

typedef uint16_t Halves __attribute__((vector_size(PAGED_BACKEND_LANES * 2)));
typedef uint32_t Bits __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(PAGED_BACKEND_LANES)));

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t num_registers = 32;
#else
constexpr int64_t num_registers = 16;
#endif

constexpr int64_t lines_at_once = 6;
constexpr int64_t vectors_at_once = 4;                        // of scores
constexpr int64_t columns_at_once = num_registers == 32 ? 8 : 4;  // vectors of sums
constexpr int64_t tile_size = vectors_at_once * lanes;        // positions whose scores are computed at once
constexpr int64_t bytes_ahead = 16384;                        // that are fetched before they are read
constexpr int64_t max_ahead = 16;                             // the same in vectors of keys or runs of values, at most
constexpr int64_t stripe_size = 64;                           // positions whose values stay in the fastest cache
constexpr int64_t weight_stride = part_size + 16;             // between lines; see line_stride

static_assert(part_size % stripe_size == 0 && part_size % tile_size == 0);

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// --- Numbers of the cache as floats -----------------------------------------------------------------------------------

inline Floats widen(const float* from) { return load(from); }

#if defined(__AVX512F__) && defined(__F16C__)

inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, load32(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, load32(from)); }
inline Floats widen(const int8_t* from) {
    return (Floats)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, load16(from)));
}

#elif defined(__AVX2__) && defined(__F16C__)

inline __m128i load8(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm256_cvtph_ps(load16(from)); }
inline Floats widen(const int8_t* from) { return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(from))); }

#else

inline Ints load_halves(const void* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Ints)__builtin_convertvector(halves, Bits);
}

inline Floats widen(const Bfloat16* from) { return as_floats(load_halves(from) << 16); }

inline Floats widen(const Float16* from) {  // as to_float(Float16)
    const Ints half = load_halves(from);
    const Ints magnitude = (half & 0x7fff) << 13;
    const Ints exponent = (magnitude >= (0x7c00 << 13)) & 0x7f800000;
    return as_floats(as_ints(as_floats(magnitude) * 0x1p112f) | exponent | ((half & 0x8000) << 16));
}

inline Floats widen(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
}

#endif

inline float widen_one(float value) { return value; }
inline float widen_one(Bfloat16 value) { return to_float(value); }
inline float widen_one(Float16 value) { return to_float(value); }
inline float widen_one(int8_t value) { return static_cast<float>(value); }

// 2^x for x <= 0, within 2 units in the last place (Taylor's series of exp(r ln 2), |r| <= 1/2, whose rest after degree
// 7 is below 1e-8); 0 below -126, where float32's normal numbers end. Not-a-number stays so.
inline Floats exp2_not_positive(Floats x) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Floats shifted = x + magic;
    const Floats r = x - (shifted - magic);
    Floats p = broadcast(1.52527338e-5f);
    p = p * r + 1.54035304e-4f;
    p = p * r + 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
    const Floats power = as_floats((Ints)(((Bits)as_ints(shifted) << 23) + (127u << 23)));
    return select(x < -126.0f, Floats{}, p * power);
}

// --- Memory -----------------------------------------------------------------------------------------------------------

// Positions of a part that follow each other in one block, and in one stripe. `first` counts from the part's begin.
struct Run {
    int64_t first;
    int64_t end;
    const char* values;
    const char* key_scales;  // int8 only, as value_scales
    const char* value_scales;
};

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

// --- The two products -------------------------------------------------------------------------------------------------

// Asks for a cache line that will be read soon: the processor does not foresee which block comes next.
inline void fetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Adds factor(line) * vector(v) to all sums. The fewer of the two stay in registers.
template <int num_lines, int num_vectors, class Factor, class Vector>
inline __attribute__((always_inline)) void add_products(Floats (&sums)[num_lines][num_vectors], const Factor& factor,
                                                        const Vector& vector) {
    if (num_lines < num_vectors) {
        float factors[num_lines];
        for (int l = 0; l < num_lines; ++l) factors[l] = factor(l);
        for (int v = 0; v < num_vectors; ++v) {
            const Floats numbers = vector(v);
            for (int l = 0; l < num_lines; ++l) sums[l][v] += factors[l] * numbers;
        }
    } else {
        Floats numbers[num_vectors];
        for (int v = 0; v < num_vectors; ++v) numbers[v] = vector(v);
        for (int l = 0; l < num_lines; ++l) {
            const float line_factor = factor(l);
            for (int v = 0; v < num_vectors; ++v) sums[l][v] += line_factor * numbers[v];
        }
    }
}

// Where some vectors of keys begin, and what to fetch as they are read: the same bytes from other places.
struct Keys {
    const char* const* vectors;
    const char* const* next;
    int64_t stride;  // numbers from one number of a key to the next
};

// Dot products of some lines' queries with some vectors of keys. Not inlined: its loop needs all registers.
template <class T, int num_lines, int num_vectors>
__attribute__((noinline)) void score_lines(const Keys& key_vectors, int64_t first, const float* queries, int64_t head_size, float* scores) {
    const T* keys[num_vectors];
    const T* next[num_vectors];
    for (int v = 0; v < num_vectors; ++v) {
        keys[v] = reinterpret_cast<const T*>(key_vectors.vectors[first + v]);
        next[v] = reinterpret_cast<const T*>(key_vectors.next[first + v]);
    }
    const int64_t key_stride = key_vectors.stride;
    Floats sums[num_lines][num_vectors];
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) sums[l][v] = Floats{};
    }
    int64_t i = 0;
    int64_t at = 0;
    do {
        add_products(
            sums, [&](int l) { return queries[l * line_stride + i]; },
            [&](int v) {
                fetch(next[v] + at);
                return widen(keys[v] + at);
            });
        at += key_stride;
    } while (++i < head_size);
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) store(sums[l][v], scores + l * weight_stride + v * lanes);
    }
}

template <class T, int num_lines>
void score_vectors(int64_t num_vectors, const Keys& keys, const float* queries, int64_t head_size, float* scores) {
    constexpr int most = num_registers == 32 || num_lines <= 3 ? 4 : 2;
    int64_t v = 0;
    for (; v + most <= num_vectors; v += most) {
        score_lines<T, num_lines, most>(keys, v, queries, head_size, scores + v * lanes);
    }
    if (v + 2 <= num_vectors) {
        score_lines<T, num_lines, 2>(keys, v, queries, head_size, scores + v * lanes);
        v += 2;
    }
    if (v < num_vectors) score_lines<T, num_lines, 1>(keys, v, queries, head_size, scores + v * lanes);
}

// What add_columns reads: runs, at least one, clipped to begin .. end - 1, of values that are `stride` numbers apart; and
// what to fetch meanwhile: the same bytes `ahead` runs later.
struct Values {
    const Run* runs;
    const Run* runs_end;
    int64_t ahead;
    int64_t begin;
    int64_t end;
    int64_t stride;
};

// Adds some columns of the values, weighted, to some lines' sums.
template <class T, int num_lines, int num_vectors>
__attribute__((noinline)) void add_columns(const Values& values, int64_t column, const float* weights, float* sums) {
    Floats sum[num_lines][num_vectors];
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) sum[l][v] = load(sums + l * line_stride + v * lanes);
    }
    const int64_t stride = values.stride;
    const Run* run = values.runs;
    do {
        int64_t key = max_of(run->first, values.begin);
        const int64_t end = min_of(run->end, values.end);
        if (key >= end) continue;
        const T* from = reinterpret_cast<const T*>(run->values) + (key - run->first) * stride + column;
        const T* next = reinterpret_cast<const T*>(run[values.ahead].values) + column;
        do {
            add_products(
                sum, [&](int l) { return weights[l * weight_stride + key]; },
                [&](int v) {
                    if (v * lanes * sizeof(T) % 64 == 0) fetch(next + v * lanes);
                    return widen(from + v * lanes);
                });
            from += stride;
            next += stride;
        } while (++key < end);
    } while (++run < values.runs_end);
    for (int l = 0; l < num_lines; ++l) {
        for (int v = 0; v < num_vectors; ++v) store(sum[l][v], sums + l * line_stride + v * lanes);
    }
}

// Sums are held in whole vectors. Where the head ends within the last vector, that is the head's last `lanes` numbers:
// some numbers are then summed twice, and alike.
inline int64_t column_of_vector(int64_t vector, int64_t width) { return min_of(vector * lanes, width - lanes); }

template <class T, int num_lines>
void add_values(const Values& values, int64_t width, const float* weights, float* sums) {
    constexpr int most = num_lines <= 3 ? columns_at_once : columns_at_once / 2;
    int64_t column = 0;
    for (; column + most * lanes <= width; column += most * lanes) {
        add_columns<T, num_lines, most>(values, column, weights, sums + column);
    }
    if (most > 4 && column + 4 * lanes <= width) {
        add_columns<T, num_lines, 4>(values, column, weights, sums + column);
        column += 4 * lanes;
    }
    if (most > 2 && column + 2 * lanes <= width) {
        add_columns<T, num_lines, 2>(values, column, weights, sums + column);
        column += 2 * lanes;
    }
    for (; column < width; column += lanes) {
        add_columns<T, num_lines, 1>(values, min_of(column, width - lanes), weights, sums + column);
    }
}

// Calls step(count, line), count a constant, for groups of at most lines_at_once lines that are about equally large.
template <class Step>
void for_lines(int64_t num_lines, const Step& step) {
    const int64_t num_groups = (num_lines + lines_at_once - 1) / lines_at_once;
    for (int64_t group = 0, line = 0; group < num_groups; ++group) {
        const int64_t count = (num_lines - line) / (num_groups - group);
        step(count, line);
        line += count;
    }
}

#define PAGED_BACKEND_FOR_LINE_COUNT(count, call) \
    switch (count) {                              \
        case 6: call(6); break;                   \
        case 5: call(5); break;                   \
        case 4: call(4); break;                   \
        case 3: call(3); break;                   \
        case 2: call(2); break;                   \
        default: call(1); break;                  \
    }

template <class T>
void score(int64_t count, int64_t num_vectors, const Keys& keys, const float* queries, int64_t head_size, float* scores) {
#define PAGED_BACKEND_CALL(lines) score_vectors<T, lines>(num_vectors, keys, queries, head_size, scores)
    PAGED_BACKEND_FOR_LINE_COUNT(count, PAGED_BACKEND_CALL)
#undef PAGED_BACKEND_CALL
}

template <class T>
void add(int64_t count, const Values& values, int64_t width, const float* weights, float* sums) {
#define PAGED_BACKEND_CALL(lines) add_values<T, lines>(values, width, weights, sums)
    PAGED_BACKEND_FOR_LINE_COUNT(count, PAGED_BACKEND_CALL)
#undef PAGED_BACKEND_CALL
}

#undef PAGED_BACKEND_FOR_LINE_COUNT

// --- Softmax ----------------------------------------------------------------------------------------------------------

// Places in a part: low .. high - 1; none if low >= high.
struct Range {
    int64_t low;
    int64_t high;

    bool is_empty() const { return low >= high; }
    int64_t first_vector() const { return low / lanes; }
    int64_t end_vector() const { return (high + lanes - 1) / lanes; }
};

struct Weighing {
    const float* key_scales;    // null: none
    const float* value_scales;  // null: none
    float soft_cap;             // 0: none; else in logarithms to base 2, and the scores are what goes into tanh
};

// Turns a line's scores in a part into weights relative to the largest of them. `seen`: what the line sees; `filled`:
// what the lines beside it see, in which its other weights become 0.
template <bool has_scales, bool has_soft_cap>
__attribute__((noinline)) void weigh(const Weighing& weighing, Range seen, Range filled, float* weights, float* largest,
                                     float* weight_sum) {
    const int64_t first = seen.is_empty() ? filled.end_vector() : seen.first_vector();
    const int64_t end = seen.is_empty() ? filled.end_vector() : seen.end_vector();
    for (int64_t v = filled.first_vector(); v < first; ++v) store(Floats{}, weights + v * lanes);
    for (int64_t v = end; v < filled.end_vector(); ++v) store(Floats{}, weights + v * lanes);
    if (seen.is_empty()) {
        *largest = -__builtin_inff();
        *weight_sum = 0.0f;
        return;
    }
    const auto is_seen = [&](int64_t v) {
        const Ints place = lane_numbers() + static_cast<int32_t>(v * lanes);
        return (place >= static_cast<int32_t>(seen.low)) & (place < static_cast<int32_t>(seen.high));
    };
    const Floats nothing = broadcast(-__builtin_inff());
    const auto score_of = [&](int64_t v) {
        Floats score = load(weights + v * lanes);
        if (has_scales) score *= load(weighing.key_scales + v * lanes);
        if (has_soft_cap) score = weighing.soft_cap * tanh_of(score);
        return score;
    };
    Floats most = nothing;
    const auto cut = [&](int64_t v) {
        const Floats score = select(is_seen(v), score_of(v), nothing);
        store(score, weights + v * lanes);
        most = score > most ? score : most;
    };
    cut(first);
    for (int64_t v = first + 1; v < end - 1; ++v) {
        const Floats score = score_of(v);
        if (has_scales || has_soft_cap) store(score, weights + v * lanes);
        most = score > most ? score : most;
    }
    if (end - 1 > first) cut(end - 1);
    const float line_most = largest_lane(most);
    Floats sum = {};
    for (int64_t v = first; v < end; ++v) {
        const Floats weight = exp2_not_positive(load(weights + v * lanes) - line_most);
        sum += weight;
        if (has_scales) {
            // What is not seen may have any scale.
            const Floats scaled = weight * load(weighing.value_scales + v * lanes);
            store(v == first || v == end - 1 ? select(is_seen(v), scaled, Floats{}) : scaled, weights + v * lanes);
        } else {
            store(weight, weights + v * lanes);
        }
    }
    *largest = line_most;
    *weight_sum = sum_lanes(sum);
}

// Puts a part of a line to those before it. In one place, so that all callers round alike.
__attribute__((noinline)) void merge_part(float part_largest, float part_weight_sum, const float* part_sums, int64_t width,
                                          float* largest, float* weight_sum, float* sums) {
    if (part_weight_sum == 0.0f) return;
    if (*weight_sum == 0.0f) {
        *largest = part_largest;
        *weight_sum = part_weight_sum;
        for (int64_t i = 0; i < width; i += lanes) store(load(part_sums + i), sums + i);
        return;
    }
    const float both = part_largest > *largest ? part_largest : *largest;
    const float shrink = exp2_not_positive(broadcast(*largest - both))[0];
    const float part_shrink = exp2_not_positive(broadcast(part_largest - both))[0];
    *largest = both;
    *weight_sum = *weight_sum * shrink + part_weight_sum * part_shrink;
    for (int64_t i = 0; i < width; i += lanes) {
        store(load(sums + i) * shrink + load(part_sums + i) * part_shrink, sums + i);
    }
}

inline void store_line(const float* sums, float weight_sum, int64_t head_size, float* out) {
    for (int64_t vector = 0; vector * lanes < head_size; ++vector) {
        const Floats result = load(sums + vector * lanes) / weight_sum;
        if (head_size >= lanes) {
            store(result, out + column_of_vector(vector, head_size));
        } else {
            std::memcpy(out, &result, sizeof(float) * static_cast<size_t>(head_size));
        }
    }
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
                for (int64_t key = 0; key < length; ++key) to[key] = widen_one(from[key]);
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
                for (int64_t i = 0; i < head_size_; ++i) to[i] = widen_one(from[i]);
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
