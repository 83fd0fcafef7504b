#include "sampling_filters.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace paged_backend {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr double log2_of_e = 1.44269504088896340736;
constexpr double ln_of_2 = 0.69314718055994530942;

// Most nuclei are smaller than the first of these; finding so few costs a fraction of the sum over the vocabulary. The
// second is tried where the first held this part of what is wanted.
constexpr int64_t few_candidates = 128;
constexpr int64_t more_candidates = 1024;
constexpr double promising = 0.5;
// What is sorted; of more, buckets find the few that matter.
constexpr int64_t most_sorted = 256;
// Logits so far below the peak, in powers of two of weight, are not looked at one by one: together they are below 1e-13
// of the mass.
constexpr double nucleus_depth = 64.0;

// The smallest float that is not below a number.
float round_up_to_float(double number) {
    const float rounded = static_cast<float>(number);
    return static_cast<double>(rounded) < number ? std::nextafter(rounded, infinity) : rounded;
}

// A logit that at least k tokens reach, and seldom many more: the k-th largest of the columns' maxima. Uses scratch.values.
float bound_of_top(const RowOfLogits& row, int64_t k, const SamplingScratch& scratch) {
    const int64_t num_blocks = sampling_blocks(row.vocab_size);
    const int64_t num_fine = num_blocks * sampling_columns;
    const int64_t num_coarse = round_up(num_blocks, sampling_columns);
    const bool coarse = k <= num_coarse / 4 * 3;
    if (!coarse && k > num_fine / 4 * 3) return -infinity;
    const float* maxima = coarse ? scratch.maxima.coarse : scratch.maxima.fine;
    float* end = std::copy_n(maxima, coarse ? num_coarse : num_fine, scratch.values);
    std::nth_element(scratch.values, scratch.values + k - 1, end, std::greater<float>());
    return scratch.values[k - 1];
}

// Buckets of one width from `low` up to `high`: how many a logit is wide. Not a number to divide by where they are too
// near to each other, or too far apart, for a float.
float buckets_a_logit(float low, float high) { return static_cast<float>(sampling_buckets - 1) / (high - low); }

bool is_usable(float factor) { return factor > 0.0f && factor < infinity; }

struct Nucleus {
    float lowest;
    double sum;  // with the weights down to `lowest`
};

// The first of some logits, from the largest down, at which `above` and the sum of their weights reach `wanted`; the
// least of them where they fall short. Reorders the logits.
Nucleus find_edge(const SamplingKernels& kernels, const Softmax& softmax, float* logits, int64_t count, double above,
                  double wanted, double* buckets) {
    float weights[most_sorted];
    while (count > most_sorted) {
        const auto [least, most] = std::minmax_element(logits, logits + count);
        const float low = *least;
        const float high = *most;
        const float factor = buckets_a_logit(low, high);
        if (!is_usable(factor)) break;
        const auto bucket_of = [&](float logit) { return static_cast<int64_t>((high - logit) * factor); };
        std::fill_n(buckets, sampling_buckets + 1, 0.0);
        for (int64_t first = 0; first < count; first += most_sorted) {
            const int64_t size = std::min(most_sorted, count - first);
            kernels.weights(logits + first, size, softmax, weights);
            for (int64_t i = 0; i < size; ++i) buckets[bucket_of(logits[first + i])] += weights[i];
        }
        int64_t edge = 0;
        for (double sum = above; edge < sampling_buckets; ++edge) {
            sum += buckets[edge];
            if (sum >= wanted) break;
            above = sum;
        }
        if (edge == sampling_buckets) return {low, above};
        count = std::remove_if(logits, logits + count, [&](float logit) { return bucket_of(logit) != edge; }) - logits;
    }
    std::sort(logits, logits + count, std::greater<float>());
    for (int64_t first = 0; first < count; first += most_sorted) {
        const int64_t size = std::min(most_sorted, count - first);
        kernels.weights(logits + first, size, softmax, weights);
        for (int64_t i = 0; i < size; ++i) {
            above += static_cast<double>(weights[i]);
            if (above >= wanted) return {logits[first + i], above};
        }
    }
    return {logits[count - 1], above};
}

// The least float whose bucket is `bucket` or an earlier one.
float end_of_bucket(const Buckets& buckets, int64_t bucket) {
    float outside = buckets.low;
    float inside = buckets.high;
    const auto holds = [&](float logit) {
        return static_cast<int64_t>((buckets.high - logit) * buckets.factor) <= bucket;
    };
    if (holds(outside)) return outside;
    for (;;) {
        const float middle = outside + (inside - outside) * 0.5f;
        if (middle <= outside || middle >= inside) return inside;
        (holds(middle) ? inside : outside) = middle;
    }
}

// The logit at which the most likely tokens of at least `lowest` reach the share top_p of their sum.
float lowest_of_nucleus(const SamplingKernels& kernels, const RowOfLogits& row, float lowest, const SamplingRow& params,
                        const SamplingScratch& scratch) {
    const Softmax softmax = make_softmax(row.peak, lowest, params.temperature);
    kernels.block_sums(row.logits, row.vocab_size, scratch.maxima, softmax, scratch.sums);
    double total = 0.0;
    for (int64_t block = 0; block < sampling_blocks(row.vocab_size); ++block) total += scratch.sums[block];
    const double wanted = params.top_p * total;

    const auto edge_within = [&](float low, float high, double above) {
        const int64_t count = kernels.collect(row.logits, row.vocab_size, scratch.maxima, low, high, scratch.tokens,
                                              scratch.values);
        if (count == 0) return Nucleus{lowest, above};
        return find_edge(kernels, softmax, scratch.values, count, above, wanted, scratch.buckets);
    };
    double held = wanted;
    for (const int64_t candidates : {few_candidates, more_candidates}) {
        if (held < promising * wanted) break;
        const int64_t k = std::min(candidates, row.vocab_size);
        const float bound = std::max(softmax.lowest, bound_of_top(row, k, scratch));
        const Nucleus nucleus = edge_within(bound, row.peak, 0.0);
        if (nucleus.sum >= wanted || bound == softmax.lowest) return nucleus.lowest;
        held = nucleus.sum;
    }

    Buckets buckets;
    buckets.high = row.peak;
    buckets.low = std::max(softmax.lowest, static_cast<float>(row.peak - params.temperature * ln_of_2 * nucleus_depth));
    buckets.count = sampling_buckets;
    if (buckets.low >= buckets.high) return row.peak;
    buckets.factor = buckets_a_logit(buckets.low, buckets.high);
    if (!is_usable(buckets.factor)) return edge_within(softmax.lowest, row.peak, 0.0).lowest;
    std::fill_n(scratch.buckets, (sampling_buckets + 1) * sampling_copies, 0.0);
    kernels.bucket_sums(row.logits, row.vocab_size, scratch.maxima, softmax, buckets, scratch.buckets);
    int64_t edge = 0;
    double above = 0.0;
    for (; edge < sampling_buckets; ++edge) {
        const double* parts = scratch.buckets + edge * sampling_copies;
        const double sum = above + ((parts[0] + parts[1]) + (parts[2] + parts[3]));
        if (sum >= wanted) break;
        above = sum;
    }
    if (edge == sampling_buckets) return lowest;
    const float low = end_of_bucket(buckets, edge);
    const float high = edge == 0 ? row.peak : std::nextafter(end_of_bucket(buckets, edge - 1), -infinity);
    return edge_within(low, high, above).lowest;
}

}  // namespace

Softmax make_softmax(float peak, float lowest, double temperature) {
    Softmax softmax;
    softmax.peak = peak;
    // Below 2^-125 a weight is taken for 0, so that float32's normal numbers suffice.
    const double floor = peak - temperature * ln_of_2 * 125.0;
    softmax.lowest = std::max(lowest, floor < -std::numeric_limits<float>::max() ? -std::numeric_limits<float>::max()
                                                                                 : static_cast<float>(floor));
    const double scale = std::min(log2_of_e / temperature, 1e38);
    softmax.scale = static_cast<float>(scale);
    softmax.scale_rest = static_cast<float>(scale - softmax.scale);
    return softmax;
}

float kth_largest(const SamplingKernels& kernels, const RowOfLogits& row, int64_t k, const SamplingScratch& scratch) {
    const float bound = bound_of_top(row, k, scratch);
    const int64_t count = kernels.collect(row.logits, row.vocab_size, scratch.maxima, bound, row.peak, scratch.tokens,
                                          scratch.values);
    std::nth_element(scratch.values, scratch.values + k - 1, scratch.values + count, std::greater<float>());
    return scratch.values[k - 1];
}

float lowest_kept_logit(const SamplingKernels& kernels, const RowOfLogits& row, const SamplingRow& params,
                        const SamplingScratch& scratch) {
    float lowest = -infinity;
    if (params.min_p > 0.0) lowest = round_up_to_float(row.peak + params.temperature * std::log(params.min_p));
    if (params.top_k > 0 && params.top_k < row.vocab_size) {
        lowest = std::max(lowest, kth_largest(kernels, row, params.top_k, scratch));
    }
    if (params.top_p < 1.0) lowest = lowest_of_nucleus(kernels, row, lowest, params, scratch);
    return lowest;
}

}  // namespace paged_backend
