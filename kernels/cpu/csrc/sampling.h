// From logits to tokens: plain pointers and sizes, no Python and no torch. kernels/sampling_batch.py says what a row's
// parameters mean. Each row is one task, computed by one thread in one order: what it gives depends on nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "whole_numbers.h"

namespace paged_backend {

class Runtime;

// Logits are looked at in blocks. A block is 16 rows of 16 columns, for every instruction set alike.
constexpr int64_t sampling_columns = 16;
constexpr int64_t sampling_block = 256;
constexpr int64_t sampling_copies = 4;

static inline int64_t sampling_blocks(int64_t vocab_size) { return divide_up(vocab_size, sampling_block); }

// The largest logit of each column of each block, [blocks, 16]; then those of 16 blocks each, [ceil(blocks / 16), 16].
struct ColumnMaxima {
    float* fine;
    float* coarse;
};

struct Peak {
    float logit;        // the largest; without meaning where the logits are not numbers
    int64_t token;      // the first that has it
    bool are_numbers;   // no NaN, no +inf, and something above -inf
};

// Weights are exp((logit - peak) / temperature) for logits of at least `lowest`, and 0 for others.
struct Softmax {
    float peak;
    float lowest;
    float scale;       // log2(e) / temperature, in two parts
    float scale_rest;
};

// Logits from high down to low, in `count` buckets of equal width: bucket (high - logit) * factor, rounded down.
struct Buckets {
    float high;
    float low;
    float factor;
    int64_t count;
};

// The passes over a row, for one instruction set (sampling_kernel.h). `n` is the vocabulary's size.
struct SamplingKernels {
    // maxima may be null.
    Peak (*largest)(const float* logits, int64_t n, const ColumnMaxima* maxima);
    // Sums of the weights of each block.
    void (*block_sums)(const float* logits, int64_t n, const ColumnMaxima& maxima, const Softmax& softmax, double* sums);
    void (*weights)(const float* logits, int64_t count, const Softmax& softmax, float* out);
    // Tokens with low <= logit <= high in the order of their ids; returns how many. tokens and values have room for a
    // block more than there are tokens.
    int64_t (*collect)(const float* logits, int64_t n, const ColumnMaxima& maxima, float low, float high, int32_t* tokens,
                       float* values);
    // Adds weights to `sums` [count + 1, sampling_copies], each bucket's in several parts; the last bucket takes what
    // belongs to none.
    void (*bucket_sums)(const float* logits, int64_t n, const ColumnMaxima& maxima, const Softmax& softmax,
                        const Buckets& buckets, double* sums);
    int64_t (*count_above)(const float* logits, int64_t n, float value);
};

// What is done to a row's logits first, in this order. Token ids are in the vocabulary.
struct LogitChanges {
    const uint32_t* mask = nullptr; // a bit for each token, the lowest of a word first: 1 where it may be drawn
    bool restricts = false;         // to allowed
    std::vector<int32_t> allowed;
    std::vector<int32_t> suppressed;
    std::vector<int32_t> biased;
    std::vector<float> biases;      // of biased
    float repetition_penalty = 1.0f;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    std::vector<int32_t> prompt;
    std::vector<int32_t> output;
};

struct SamplingRow {
    double temperature = 0.0;
    double top_p = 1.0;
    double min_p = 0.0;
    int64_t top_k = 0;              // 0: all
    uint64_t position = 0;
    int64_t first_sample = 0;       // its samples follow each other in seeds and in the results
    int64_t num_samples = 0;
    int64_t num_logprobs = -1;      // -1: no description
    int64_t num_best = 0;           // above 0: its samples are that many of the most likely tokens, and nothing is drawn
    bool is_given = false;          // its samples are there already, only to be described
    const LogitChanges* changes = nullptr;
};

struct LikelyToken {
    int32_t token;
    float logprob;
};

// One call. The caller fills the first part and sizes the results; `sample` writes them.
struct SamplingCall {
    const float* logits = nullptr;  // [rows, vocab_size], rows row_stride apart
    int64_t vocab_size = 0;
    int64_t row_stride = 0;
    std::vector<SamplingRow> rows;
    std::vector<uint64_t> seeds;    // one for each sample; without meaning where nothing is drawn

    std::vector<int64_t> tokens;    // [samples]; -1 where there is none; the caller writes those that are given
    std::vector<float> logprobs;    // [samples], or empty where no row asks for descriptions
    std::vector<int64_t> ranks;     // like logprobs
    std::vector<std::vector<LikelyToken>> top;  // [rows], each as long as the row asks; or empty
    std::vector<float> scores;      // [samples], -inf where there is no token; or empty where every row draws
};

// The caller holds runtime.turn(), and has checked everything (bind_sampling.cpp).
void sample(Runtime& runtime, SamplingCall& call);

}  // namespace paged_backend
