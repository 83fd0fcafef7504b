// Stores one token's key or value, of one key/value head, into its block of the paged cache (kv_cache.h), rounded to
// the nearest number of the cache's dtype, ties to even.
//
// Tokens beside each other in a block share cache lines in `store_key` (and their scales do in int8): threads that
// write at once should have different key/value heads, or rows that begin at multiples of 16 tokens of a sequence.
#pragma once

#include "float_types.h"
#include "kv_cache.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace paged_backend {
namespace {

inline void round_numbers(const float* from, int64_t count, float* to) {
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count));
}

inline void round_numbers(const float* from, int64_t count, Bfloat16* to) {
    for (int64_t i = 0; i < count; ++i) store_float(from[i], to + i);
}

inline void round_numbers(const float* from, int64_t count, Float16* to) {
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__F16C__)
    for (; i + 16 <= count; i += 16) {
        const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to + i, &halves, sizeof halves);
    }
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to + i, &halves, sizeof halves);
    }
#endif
    for (; i < count; ++i) store_float(from[i], to + i);
}

// Gives the scale; see kv_cache.h.
inline float quantize_head(const float* head, int64_t head_size, int8_t* to) {
    // Magnitudes order as their bits do, and what is no number comes last.
    uint32_t most = 0;
    for (int64_t i = 0; i < head_size; ++i) {
        const uint32_t magnitude = bits_of(head[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    const float largest = float_of(most);
    const bool is_finite = most < 0x7f800000u;
    if (!is_finite || largest < 127.0f * 0x1p-126f) {
        std::memset(to, 0, static_cast<size_t>(head_size));
        return is_finite ? 0.0f : __builtin_nanf("");
    }
    const float scale = largest / 127.0f;
    for (int64_t i = 0; i < head_size; ++i) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
        to[i] = static_cast<int8_t>(bits_of(head[i] / scale + 12582912.0f));
    }
    return scale;
}

inline void store_scale(char* block, const CacheLayout& layout, int64_t kv_head, int64_t offset, float scale) {
    std::memcpy(block + scales_offset(layout) + (kv_head * layout.block_size + offset) * 4, &scale, sizeof scale);
}

template <class T>
void store_key_numbers(char* block, const CacheLayout& layout, int64_t kv_head, int64_t offset, const T* head) {
    T* to = reinterpret_cast<T*>(block) + kv_head * layout.head_size * layout.block_size + offset;
    for (int64_t i = 0; i < layout.head_size; ++i) to[i * layout.block_size] = head[i];
}

template <class T>
T* value_in_block(char* block, const CacheLayout& layout, int64_t kv_head, int64_t offset) {
    return reinterpret_cast<T*>(block) + (kv_head * layout.block_size + offset) * layout.head_size;
}

// head: [head_size]. block: the first byte of the token's block in the layer's keys, aligned to 4 bytes.
inline void store_key(char* block, const CacheLayout& layout, int64_t kv_head, int64_t offset, const float* head) {
    switch (layout.dtype) {
        case CacheDtype::float32: return store_key_numbers(block, layout, kv_head, offset, head);
        case CacheDtype::bfloat16: {
            Bfloat16 rounded[max_head_size];
            round_numbers(head, layout.head_size, rounded);
            return store_key_numbers(block, layout, kv_head, offset, rounded);
        }
        case CacheDtype::float16: {
            Float16 rounded[max_head_size];
            round_numbers(head, layout.head_size, rounded);
            return store_key_numbers(block, layout, kv_head, offset, rounded);
        }
        case CacheDtype::int8: {
            int8_t rounded[max_head_size];
            store_scale(block, layout, kv_head, offset, quantize_head(head, layout.head_size, rounded));
            return store_key_numbers(block, layout, kv_head, offset, rounded);
        }
    }
}

// As store_key, into the token's block of the layer's values.
inline void store_value(char* block, const CacheLayout& layout, int64_t kv_head, int64_t offset, const float* head) {
    switch (layout.dtype) {
        case CacheDtype::float32:
            return round_numbers(head, layout.head_size, value_in_block<float>(block, layout, kv_head, offset));
        case CacheDtype::bfloat16:
            return round_numbers(head, layout.head_size, value_in_block<Bfloat16>(block, layout, kv_head, offset));
        case CacheDtype::float16:
            return round_numbers(head, layout.head_size, value_in_block<Float16>(block, layout, kv_head, offset));
        case CacheDtype::int8:
            return store_scale(
                block, layout, kv_head, offset,
                quantize_head(head, layout.head_size, value_in_block<int8_t>(block, layout, kv_head, offset)));
    }
}

}  // namespace
}  // namespace paged_backend
