#include "logit_changes.h"

#include <algorithm>
#include <limits>

namespace paged_backend {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void restrict_to(const std::vector<int32_t>& allowed, float* logits, int64_t vocab_size, float* kept) {
    for (size_t i = 0; i < allowed.size(); ++i) kept[i] = logits[allowed[i]];
    std::fill_n(logits, vocab_size, -infinity);
    for (size_t i = 0; i < allowed.size(); ++i) logits[allowed[i]] = kept[i];
}

void apply_mask(const uint32_t* mask, float* logits, int64_t vocab_size) {
    for (int64_t first = 0; first < vocab_size; first += 32, ++mask) {
        const int64_t count = std::min<int64_t>(32, vocab_size - first);
        if (*mask == 0) {
            std::fill_n(logits + first, count, -infinity);
        } else if (*mask != ~0u) {
            for (int64_t i = 0; i < count; ++i) logits[first + i] = *mask >> i & 1 ? logits[first + i] : -infinity;
        }
    }
}

// Repetition over prompt and output; presence and frequency over the output alone. Each token once.
void penalise(const LogitChanges& changes, float* logits, int32_t* counts) {
    constexpr int32_t done = -1;
    // Only the counts that are used are cleared: a vocabulary is much longer than most texts.
    for (const int32_t token : changes.prompt) counts[token] = 0;
    for (const int32_t token : changes.output) counts[token] = 0;
    for (const int32_t token : changes.output) ++counts[token];
    const auto change = [&](int32_t token) {
        const int32_t count = counts[token];
        if (count == done) return;
        counts[token] = done;
        float value = logits[token];
        if (changes.repetition_penalty != 1.0f) {
            value = value > 0.0f ? value / changes.repetition_penalty : value * changes.repetition_penalty;
        }
        if (count > 0) {
            value -= changes.frequency_penalty * static_cast<float>(count);
            value -= changes.presence_penalty;
        }
        logits[token] = value;
    };
    for (const int32_t token : changes.prompt) change(token);
    for (const int32_t token : changes.output) change(token);
}

}  // namespace

void change_logits(const LogitChanges& changes, float* logits, int64_t vocab_size, int32_t* counts, float* kept) {
    if (changes.mask != nullptr) apply_mask(changes.mask, logits, vocab_size);
    if (changes.restricts) restrict_to(changes.allowed, logits, vocab_size, kept);
    for (const int32_t token : changes.suppressed) logits[token] = -infinity;
    for (size_t i = 0; i < changes.biased.size(); ++i) logits[changes.biased[i]] += changes.biases[i];
    penalise(changes, logits, counts);
}

}  // namespace paged_backend
