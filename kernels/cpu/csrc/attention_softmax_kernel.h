// Softmax of paged attention: of one part of the positions, and how parts are put together.
#pragma once

#include "attention_numbers_kernel.h"

namespace paged_backend {
namespace {
namespace attention {

// Places in a part: low .. high - 1; none if low >= high.
struct Range {
    int64_t low;
    int64_t high;

    bool is_empty() const { return low >= high; }
    int64_t first_vector() const { return low / lanes; }
    int64_t end_vector() const { return divide_up(high, lanes); }
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

}  // namespace attention
}  // namespace
}  // namespace paged_backend
