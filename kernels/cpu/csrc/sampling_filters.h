// Which tokens a draw may give: min_p, top_k and top_p, in this order, as one lowest logit of a row.
#pragma once

#include "sampling.h"

namespace paged_backend {

constexpr int64_t sampling_buckets = 512;

// A thread's memory for one row.
struct SamplingScratch {
    ColumnMaxima maxima;
    double* sums;      // [blocks + 1]
    double* buckets;   // [sampling_buckets + 1, sampling_copies]
    float* changed;    // [vocab_size], where a row's logits are changed
    int32_t* tokens;   // [vocab_size + sampling_block]
    float* values;     // [vocab_size + sampling_block]
    LikelyToken* likely;  // [vocab_size], where a row asks for its most likely tokens
};

// A row to draw from; maxima are those of its logits.
struct RowOfLogits {
    const float* logits;
    int64_t vocab_size;
    float peak;
};

Softmax make_softmax(float peak, float lowest, double temperature);

// The logit of rank `k`, counted from 1 and from the largest; k is in 1 .. vocab_size.
float kth_largest(const SamplingKernels& kernels, const RowOfLogits& row, int64_t k, const SamplingScratch& scratch);

// The logit that a token needs to be drawn; -inf where all may be.
float lowest_kept_logit(const SamplingKernels& kernels, const RowOfLogits& row, const SamplingRow& params,
                        const SamplingScratch& scratch);

}  // namespace paged_backend
