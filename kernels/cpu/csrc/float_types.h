// Numbers of 8 and 16 bits: to float32 exactly; and from it those of 16, rounded to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace paged_backend {
namespace {  // each instruction set's file keeps its own copy

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float to_float(float value) { return value; }

inline float to_float(int8_t value) { return static_cast<float>(value); }

inline float to_float(Bfloat16 value) { return float_of(uint32_t{value.bits} << 16); }

inline float to_float(Float16 value) {
    const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    // With the exponent moved to float32's place, only its bias is off, by 2^112: so also for subnormal numbers.
    const float scaled = float_of(magnitude << 13) * 0x1p112f;
    const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : bits_of(scaled);
    return float_of(bits | sign);
}

inline void store_float(float value, float* to) { *to = value; }

inline void store_float(float value, Bfloat16* to) {
    const uint32_t bits = bits_of(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    to->bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded >> 16);
}

inline void store_float(float value, Float16* to) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;  // not a number
    } else if (magnitude >= 0x477ff000u) {
        half = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14: adding 0.5 leaves the subnormal number's bits, rounded, at the bottom of the sum.
        half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    to->bits = static_cast<uint16_t>(half | sign);
}

}  // namespace
}  // namespace paged_backend
