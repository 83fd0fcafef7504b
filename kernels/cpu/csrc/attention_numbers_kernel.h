// What paged attention counts with: sizes, the cache's numbers as vectors of floats, and 2^x.
#pragma once

#include "float_types.h"
#include "paged_attention.h"
#include "simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace paged_backend {
namespace {
namespace attention {

typedef uint16_t Halves __attribute__((vector_size(PAGED_BACKEND_LANES * 2)));
typedef uint32_t Bits __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(PAGED_BACKEND_LANES)));

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
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline Floats widen(const float* from) { return load(from); }

#if defined(__AVX512F__) && defined(__F16C__)

inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline __m256i load32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, load32(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, load32(from)); }
inline Floats widen(const int8_t* from) {
    return (Floats)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, load16(from)));
}

#elif defined(__AVX2__) && defined(__F16C__)

inline __m128i load8(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
inline __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm256_cvtph_ps(load16(from)); }
inline Floats widen(const int8_t* from) { return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(from))); }

#else

inline Ints load_halves(const void* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Ints)__builtin_convertvector(halves, Bits);
}

inline Floats widen(const Bfloat16* from) { return as_floats(load_halves(from) << 16); }

inline Floats widen(const Float16* from) {  // as to_float(Float16)
    const Ints half = load_halves(from);
    const Ints magnitude = (half & 0x7fff) << 13;
    const Ints exponent = (magnitude >= (0x7c00 << 13)) & 0x7f800000;
    return as_floats(as_ints(as_floats(magnitude) * 0x1p112f) | exponent | ((half & 0x8000) << 16));
}

inline Floats widen(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
}

#endif

inline float widen_one(float value) { return value; }
inline float widen_one(Bfloat16 value) { return to_float(value); }
inline float widen_one(Float16 value) { return to_float(value); }
inline float widen_one(int8_t value) { return static_cast<float>(value); }

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
