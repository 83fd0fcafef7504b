#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "logit_changes.h"
#include "philox.h"
#include "runtime.h"
#include "sampling_filters.h"

namespace paged_backend {

namespace {

// Logits that the calling thread looks through in the time that it takes to wake another.
constexpr int64_t small_call = 1 << 16;

// Where the parts of a thread's memory begin, in bytes.
class Layout {
  public:
    explicit Layout(const SamplingCall& call) {
        const int64_t blocks = sampling_blocks(call.vocab_size);
        bool draws = false, changes = false, lists = false;
        int64_t most_allowed = 0;
        for (const SamplingRow& row : call.rows) {
            draws |= row.temperature > 0.0;
            lists |= row.num_logprobs >= 0 || row.num_best > 0;
            changes |= row.changes != nullptr;
            if (row.changes) most_allowed = std::max(most_allowed, static_cast<int64_t>(row.changes->allowed.size()));
        }
        const int64_t num_tokens = draws || changes || lists ? call.vocab_size : 0;
        take<float>(fine_, blocks * sampling_columns);
        take<float>(coarse_, round_up(blocks, sampling_columns));
        take<double>(sums_, blocks + 1);
        take<double>(buckets_, (sampling_buckets + 1) * sampling_copies);
        take<float>(changed_, changes ? num_tokens : 0);
        take<int32_t>(tokens_, num_tokens + sampling_block);
        take<float>(values_, std::max(num_tokens, most_allowed) + sampling_block);
        take<LikelyToken>(likely_, lists ? num_tokens : 0);
    }

    int64_t bytes() const { return bytes_; }

    SamplingScratch in(char* memory) const {
        return {{reinterpret_cast<float*>(memory + fine_), reinterpret_cast<float*>(memory + coarse_)},
                reinterpret_cast<double*>(memory + sums_),
                reinterpret_cast<double*>(memory + buckets_),
                reinterpret_cast<float*>(memory + changed_),
                reinterpret_cast<int32_t*>(memory + tokens_),
                reinterpret_cast<float*>(memory + values_),
                reinterpret_cast<LikelyToken*>(memory + likely_)};
    }

  private:
    template <class T>
    void take(int64_t& begin, int64_t count) {
        begin = bytes_;
        bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    }

    int64_t fine_, coarse_, sums_, buckets_, changed_, tokens_, values_, likely_;
    int64_t bytes_ = 0;
};

// A logit's log-probability.
struct LogProbability {
    double peak;
    double log_sum;  // of the weights, which are multiples of the peak's

    float operator()(float logit) const { return static_cast<float>(static_cast<double>(logit) - peak - log_sum); }
};

class RowSampler {
  public:
    RowSampler(const SamplingKernels& kernels, SamplingCall& call, const SamplingScratch& scratch)
        : kernels_(kernels), call_(call), scratch_(scratch) {}

    void run(int64_t index) const {
        const SamplingRow& params = call_.rows[static_cast<size_t>(index)];
        const float* raw = call_.logits + index * call_.row_stride;
        int64_t* tokens = call_.tokens.data() + params.first_sample;
        const bool takes_best = params.num_best > 0;
        const bool draws = params.temperature > 0.0;
        const bool describes = params.num_logprobs >= 0;
        const ColumnMaxima* maxima = takes_best || draws || describes ? &scratch_.maxima : nullptr;

        const Peak raw_peak = kernels_.largest(raw, call_.vocab_size, maxima);
        if (takes_best) {
            if (!raw_peak.are_numbers) return leave_out(params);
            const RowOfLogits row{raw, call_.vocab_size, raw_peak.logit};
            if (!take_best(row, params)) return leave_out(params);
            if (!describes) return;
            if (params.changes != nullptr) kernels_.largest(raw, call_.vocab_size, maxima);
            return describe(row, params, index);
        }
        if (params.is_given) {
            if (!raw_peak.are_numbers) return leave_out(params);
            if (describes) describe({raw, call_.vocab_size, raw_peak.logit}, params, index);
            return;
        }
        Peak peak = raw_peak;
        const float* logits = raw;
        if (params.changes != nullptr && raw_peak.are_numbers) {
            std::memcpy(scratch_.changed, raw, static_cast<size_t>(call_.vocab_size) * sizeof(float));
            change_logits(*params.changes, scratch_.changed, call_.vocab_size, scratch_.tokens, scratch_.values);
            logits = scratch_.changed;
            peak = kernels_.largest(logits, call_.vocab_size, maxima);
        }
        if (!peak.are_numbers) return leave_out(params);
        if (draws) {
            draw({logits, call_.vocab_size, peak.logit}, params, tokens);
        } else {
            std::fill_n(tokens, params.num_samples, peak.token);
        }
        if (!describes) return;
        if (logits != raw) kernels_.largest(raw, call_.vocab_size, maxima);
        describe({raw, call_.vocab_size, raw_peak.logit}, params, index);
    }

  private:
    void leave_out(const SamplingRow& params) const {
        std::fill_n(call_.tokens.begin() + params.first_sample, params.num_samples, -1);
    }

    // Inverts the cumulative distribution, in the order of token ids, at each seed's number.
    void draw(const RowOfLogits& row, const SamplingRow& params, int64_t* tokens) const {
        const float lowest = lowest_kept_logit(kernels_, row, params, scratch_);
        const Softmax softmax = make_softmax(row.peak, lowest, params.temperature);
        const int64_t num_blocks = sampling_blocks(row.vocab_size);
        double* sums = scratch_.sums;  // made into sums of the blocks before, and at the end of all
        kernels_.block_sums(row.logits, row.vocab_size, scratch_.maxima, softmax, sums);
        double total = 0.0;
        for (int64_t block = 0; block < num_blocks; ++block) {
            const double sum = sums[block];
            sums[block] = total;
            total += sum;
        }
        sums[num_blocks] = total;
        for (int64_t i = 0; i < params.num_samples; ++i) {
            const uint64_t seed = call_.seeds[static_cast<size_t>(params.first_sample + i)];
            const double point = uniform(seed, params.position) * total;
            // The first block whose end is beyond the point. There is one: the point is below the total, as uniform
            // numbers are below 1 by 2^-53 at least.
            const double* end = std::upper_bound(sums + 1, sums + num_blocks, point);
            tokens[i] = token_at(row, softmax, end - sums - 1, point);
        }
    }

    // The first token of a block at which the sum of all weights up to it exceeds the point: never one of weight 0.
    int64_t token_at(const RowOfLogits& row, const Softmax& softmax, int64_t block, double point) const {
        float weights[sampling_block];
        const int64_t first = block * sampling_block;
        const int64_t size = std::min(sampling_block, row.vocab_size - first);
        kernels_.weights(row.logits + first, size, softmax, weights);
        double sum = scratch_.sums[block];
        int64_t last = 0;
        for (int64_t i = 0; i < size; ++i) {
            if (weights[i] == 0.0f) continue;
            sum += static_cast<double>(weights[i]);
            last = i;
            if (sum > point) break;
        }
        return first + last;  // where rounding lets the sum fall short: the last that has a weight
    }

    // The most likely tokens by log-probabilities that are changed first; whether there is one.
    bool take_best(const RowOfLogits& raw, const SamplingRow& params) const {
        constexpr float none = -std::numeric_limits<float>::infinity();
        const LogProbability logprob_of = log_probability(raw);
        RowOfLogits row = raw;
        if (params.changes != nullptr) {
            std::transform(raw.logits, raw.logits + raw.vocab_size, scratch_.changed, logprob_of);
            change_logits(*params.changes, scratch_.changed, raw.vocab_size, scratch_.tokens, scratch_.values);
            const Peak peak = kernels_.largest(scratch_.changed, raw.vocab_size, &scratch_.maxima);
            if (!peak.are_numbers) return false;
            row = {scratch_.changed, raw.vocab_size, peak.logit};
        }
        const LikelyToken* best = most_likely(row, params.num_best);
        for (int64_t i = 0; i < params.num_best; ++i) {
            const float score = params.changes != nullptr ? best[i].logprob : logprob_of(best[i].logprob);
            const auto at = static_cast<size_t>(params.first_sample + i);
            call_.tokens[at] = score == none ? -1 : best[i].token;
            call_.scores[at] = score;
        }
        return true;
    }

    // The `count` tokens of a row with the largest logits, these in the place of log-probabilities: the largest first,
    // of equals the one with the smaller id.
    const LikelyToken* most_likely(const RowOfLogits& row, int64_t count) const {
        const float least = kth_largest(kernels_, row, count, scratch_);
        const int64_t found = kernels_.collect(row.logits, row.vocab_size, scratch_.maxima, least, row.peak,
                                               scratch_.tokens, scratch_.values);
        LikelyToken* likely = scratch_.likely;
        for (int64_t i = 0; i < found; ++i) likely[i] = {scratch_.tokens[i], scratch_.values[i]};
        const auto comes_first = [](const LikelyToken& a, const LikelyToken& b) {
            return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
        };
        std::partial_sort(likely, likely + count, likely + found, comes_first);
        return likely;
    }

    // Of a row's logits; scratch_.maxima must be theirs.
    LogProbability log_probability(const RowOfLogits& row) const {
        const Softmax softmax = make_softmax(row.peak, -std::numeric_limits<float>::infinity(), 1.0);
        kernels_.block_sums(row.logits, row.vocab_size, scratch_.maxima, softmax, scratch_.sums);
        double total = 0.0;
        for (int64_t block = 0; block < sampling_blocks(row.vocab_size); ++block) total += scratch_.sums[block];
        return {static_cast<double>(row.peak), std::log(total)};
    }

    // Log-probability and rank of the row's tokens, and the most likely ones, of the logits as they came.
    void describe(const RowOfLogits& row, const SamplingRow& params, int64_t index) const {
        const LogProbability logprob_of = log_probability(row);
        for (int64_t i = params.first_sample; i < params.first_sample + params.num_samples; ++i) {
            const auto at = static_cast<size_t>(i);
            if (call_.tokens[at] < 0) continue;
            const float logit = row.logits[call_.tokens[at]];
            call_.logprobs[at] = logprob_of(logit);
            const bool as_before = i > params.first_sample && call_.tokens[at] == call_.tokens[at - 1];
            call_.ranks[at] =
                as_before ? call_.ranks[at - 1] : 1 + kernels_.count_above(row.logits, row.vocab_size, logit);
        }
        std::vector<LikelyToken>& top = call_.top[static_cast<size_t>(index)];
        if (top.empty()) return;
        const LikelyToken* likely = most_likely(row, static_cast<int64_t>(top.size()));
        for (size_t i = 0; i < top.size(); ++i) top[i] = {likely[i].token, logprob_of(likely[i].logprob)};
    }

    const SamplingKernels& kernels_;
    SamplingCall& call_;
    const SamplingScratch scratch_;
};

}  // namespace

void sample(Runtime& runtime, SamplingCall& call) {
    const auto num_rows = static_cast<int64_t>(call.rows.size());
    const Layout layout(call);
    char* const* memory = runtime.scratch(layout.bytes());
    const SamplingKernels& kernels = runtime.kernels().sampling;
    const auto run_row = [&](int64_t row, int thread) {
        RowSampler(kernels, call, layout.in(memory[thread])).run(row);
    };
    if (num_rows == 1 || num_rows * call.vocab_size <= small_call) {
        for (int64_t row = 0; row < num_rows; ++row) run_row(row, 0);
    } else {
        runtime.team().run(num_rows, run_row);
    }
}

}  // namespace paged_backend
