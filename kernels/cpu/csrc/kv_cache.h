// A block of the paged cache: the bytes in which one layer's keys, or values, of block_size tokens lie.
//
//     keys     [num_kv_heads, head_size, block_size]   turned: a vector holds one number of several tokens' keys
//     values   [num_kv_heads, block_size, head_size]
//     int8 only, from the next multiple of 4 bytes on: float32 scales [num_kv_heads, block_size]
//
// then unused bytes up to a multiple of 64, so that copying, swapping and storing blocks is copying bytes.
//
// int8: number = int8 * scale of its token and head; scale = largest magnitude / 127 of that head. Heads whose largest
// magnitude is below 127 * 2^-126 (where float32's normal numbers end) are zeros with the scale 0. A head with an
// infinite number, or one that is none, is zeros with a scale that is not a number: all of it reads as not-a-number.
#pragma once

#include <cstdint>

#include "whole_numbers.h"

namespace paged_backend {

enum class CacheDtype { float32, bfloat16, float16, int8 };

constexpr int64_t max_head_size = 256;

struct CacheLayout {
    CacheDtype dtype;
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t head_size;  // up to max_head_size
};

namespace {  // each instruction set's file keeps its own copy

constexpr int64_t block_alignment = 64;

inline int64_t bytes_of_number(CacheDtype dtype) {
    switch (dtype) {
        case CacheDtype::float32: return 4;
        case CacheDtype::bfloat16: return 2;
        case CacheDtype::float16: return 2;
        case CacheDtype::int8: return 1;
    }
    return 0;
}

inline int64_t numbers_in_block(const CacheLayout& layout) {
    return layout.num_kv_heads * layout.block_size * layout.head_size;
}

// Where an int8 block's scales begin.
inline int64_t scales_offset(const CacheLayout& layout) { return round_up(numbers_in_block(layout), 4); }

inline int64_t block_bytes(const CacheLayout& layout) {
    int64_t bytes = numbers_in_block(layout) * bytes_of_number(layout.dtype);
    if (layout.dtype == CacheDtype::int8) bytes = scales_offset(layout) + layout.num_kv_heads * layout.block_size * 4;
    return round_up(bytes, block_alignment);
}

}  // namespace
}  // namespace paged_backend
