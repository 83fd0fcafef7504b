// The two products of paged attention: queries times keys, weights times values, for some lines at once.
#pragma once

#include "attention_numbers_kernel.h"

namespace paged_backend {
namespace {
namespace attention {

// Positions of a part that follow each other in one block, and in one stripe. `first` counts from the part's begin.
struct Run {
    int64_t first;
    int64_t end;
    const char* values;
    const char* key_scales;  // int8 only, as value_scales
    const char* value_scales;
};

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
    const int64_t num_groups = divide_up(num_lines, lines_at_once);
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

}  // namespace attention
}  // namespace
}  // namespace paged_backend
