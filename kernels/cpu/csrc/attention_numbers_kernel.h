// What paged attention counts with: sizes, and 2^x.
#pragma once

#include "float_types.h"
#include "paged_attention.h"
#include "simd.h"
#include "whole_numbers.h"

namespace paged_backend {
namespace {
namespace attention {

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

}  // namespace attention
}  // namespace
}  // namespace paged_backend
