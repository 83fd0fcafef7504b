// Vectors of PAGED_BACKEND_LANES floats, in the vector extension that GCC and Clang share. Include it only in files that
// are compiled for one instruction set: everything here is private to the file.
#pragma once

#include <cstdint>
#include <cstring>

#include "float_types.h"

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
typedef uint32_t Bits8 __attribute__((vector_size(32)));
typedef uint16_t Halves8 __attribute__((vector_size(16)));

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

inline Floats8 load8(const float* from) {
    Floats8 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Bits8 load8_bits(const void* from) {
    Halves8 halves;
    std::memcpy(&halves, from, sizeof halves);
    return __builtin_convertvector(halves, Bits8);
}

inline Floats8 load8(const Bfloat16* from) {
    const Bits8 bits = load8_bits(from) << 16;
    Floats8 value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline Floats8 load8(const Float16* from) {  // as to_float(Float16)
    const Bits8 half = load8_bits(from);
    const Bits8 magnitude = (half & 0x7fffu) << 13;
    Floats8 scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;
    Bits8 bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    bits |= (half & 0x8000u) << 16;
    bits |= (Bits8)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
    Floats8 value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void store8(Floats8 value, float* to) { std::memcpy(to, &value, sizeof value); }

}  // namespace
}  // namespace paged_backend
