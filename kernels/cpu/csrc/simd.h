// Vectors of PAGED_BACKEND_LANES floats, in the vector extension that GCC and Clang share. Include it only in files that
// are compiled for one instruction set: everything here is private to the file.
#pragma once

#include <cstdint>
#include <cstring>

#include "float_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef PAGED_BACKEND_LANES
#error "define PAGED_BACKEND_LANES, the floats in a vector of this file's instruction set"
#endif

namespace paged_backend {
namespace {

constexpr int64_t lanes = PAGED_BACKEND_LANES;

typedef float Floats __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(PAGED_BACKEND_LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(PAGED_BACKEND_LANES)));

inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }

inline Floats broadcast(float value) { return value - Floats{}; }

inline Ints as_ints(Floats value) {
    Ints bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline Floats as_floats(Ints bits) {
    Floats value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The next `lanes` numbers as floats, exactly: as to_float gives them one by one.
inline Floats widen(const float* from) { return load(from); }

#if PAGED_BACKEND_LANES == 16 && defined(__AVX512F__) && defined(__F16C__)

inline __m128i load_16_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline __m256i load_32_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, load_32_bytes(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, load_32_bytes(from)); }
inline Floats widen(const int8_t* from) {
    return (Floats)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, load_16_bytes(from)));
}

#elif PAGED_BACKEND_LANES == 8 && defined(__AVX2__) && defined(__F16C__)

inline __m128i load_8_bytes(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
inline __m128i load_16_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline Floats widen(const Bfloat16* from) {
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bytes(from)), 16);
}
inline Floats widen(const Float16* from) { return (Floats)_mm256_cvtph_ps(load_16_bytes(from)); }
inline Floats widen(const int8_t* from) { return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(from))); }

#else

inline Ints load_halves(const void* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Ints)__builtin_convertvector(halves, Bits);
}

inline Floats widen(const Bfloat16* from) { return as_floats(load_halves(from) << 16); }

inline Floats widen(const Float16* from) {
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

inline Floats select(Ints mask, Floats yes, Floats no) { return as_floats((as_ints(yes) & mask) | (as_ints(no) & ~mask)); }

inline Floats larger(Floats a, Floats b) { return select(a > b, a, b); }

inline Ints lane_numbers() {
    Ints numbers;
    for (int64_t lane = 0; lane < lanes; ++lane) numbers[lane] = static_cast<int32_t>(lane);
    return numbers;
}

// Always the same tree, whatever the numbers.
inline float sum_lanes(Floats value) {
    float parts[lanes];
    store(value, parts);
    for (int64_t half = lanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    }
    return parts[0];
}

inline float largest_lane(Floats value) {
    float parts[lanes];
    store(value, parts);
    for (int64_t half = lanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) {
            parts[lane] = parts[lane] > parts[lane + half] ? parts[lane] : parts[lane + half];
        }
    }
    return parts[0];
}

// e^x for x <= 0, within 2 units in the last place (exp(x) = 2^n * exp(r), Taylor's series for |r| <= ln(2) / 2, whose
// rest after degree 7 is below 1e-8); 0 below -87, where float32's normal numbers end. Not-a-number stays so.
inline Floats exp_not_positive(Floats x) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Floats shifted = x * 1.44269504088896341f + magic;
    const Floats n = shifted - magic;
    // ln(2) in two parts, the first with so few bits that n times it is exact.
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
    Floats p = broadcast(1.0f / 5040.0f);
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Bits exponent = ((Bits)as_ints(shifted) << 23) + (127u << 23);  // wraps around far below -87
    const Floats power = as_floats((Ints)exponent);
    return select(x < -87.0f, Floats{}, p * power);
}

// tanh(x): by exp(-2|x|), and near 0, where that would cancel, by the polynomial of Cephes' tanhf.
inline Floats tanh_of(Floats x) {
    const Ints sign = as_ints(x) & INT32_MIN;
    const Floats magnitude = as_floats(as_ints(x) & INT32_MAX);
    const Floats e = exp_not_positive(-2.0f * magnitude);
    const Floats far = (1.0f - e) / (1.0f + e);
    const Floats z = x * x;
    Floats p = broadcast(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const Floats near = magnitude + magnitude * z * p;
    return as_floats(as_ints(select(magnitude < 0.625f, near, far)) | sign);
}

inline Floats8 load_eight(const float* from) {
    Floats8 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

}  // namespace
}  // namespace paged_backend
