// Between floats and small whole numbers: rows of x on their way into the integer dot products, and weights on their
// way out of a panel.
#pragma once

#include "linear.h"
#include "simd.h"
#include "whole_numbers.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace paged_backend {
namespace {

// Numbers that are all smaller count as zeros: their factor would be too large for a float.
constexpr float smallest_scaled = 0x1p-100f;

typedef int32_t FourInts __attribute__((vector_size(16)));
typedef uint32_t FourBits __attribute__((vector_size(16)));

inline int32_t largest_of(Ints value) {
    FourInts parts[lanes / 4];
    std::memcpy(parts, &value, sizeof parts);
    for (int64_t part = 1; part < lanes / 4; ++part) parts[0] = parts[part] > parts[0] ? parts[part] : parts[0];
    const int32_t a = parts[0][0] > parts[0][1] ? parts[0][0] : parts[0][1];
    const int32_t b = parts[0][2] > parts[0][3] ? parts[0][2] : parts[0][3];
    return a > b ? a : b;
}

inline uint32_t sum_of(Bits value) {
    FourBits parts[lanes / 4];
    std::memcpy(parts, &value, sizeof parts);
    for (int64_t part = 1; part < lanes / 4; ++part) parts[0] += parts[part];
    uint32_t sum = 0;
    for (int lane = 0; lane < 4; ++lane) sum += parts[0][lane];
    return sum;
}

// The low bits of each lane. (What the compiler makes of __builtin_convertvector here is ten times as long.)
inline void store_low_bits(Ints value, int8_t* to) {
#if PAGED_BACKEND_LANES == 16 && defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)value));
#elif PAGED_BACKEND_LANES == 8 && defined(__AVX2__)
    const __m256i low_bytes = _mm256_set1_epi32(0x0c080400);
    const __m256i quads = _mm256_shuffle_epi8((__m256i)value, low_bytes);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
#else
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = static_cast<int8_t>(value[lane]);
#endif
}

inline void store_low_bits(Ints value, int16_t* to) {
#if PAGED_BACKEND_LANES == 16 && defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)value));
#elif PAGED_BACKEND_LANES == 8 && defined(__AVX2__)
    const __m256i low_halves = _mm256_set1_epi64x(0x0d0c090805040100);
    const __m256i pairs = _mm256_shuffle_epi8((__m256i)value, low_halves);
    const __m128i all = _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), all);
#else
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = static_cast<int16_t>(value[lane]);
#endif
}

// The order of four numbers in a row's quad: see Int8Rows and Int16Rows.
inline void store_quad(const int8_t* from, char* to) { std::memcpy(to, from, 4); }

inline void store_quad(const int16_t* from, char* to) {  // k0 k2 k1 k3
    uint64_t four;
    std::memcpy(&four, from, 8);
    four = (four & 0xffff00000000ffffu) | ((four >> 16) & 0xffff0000u) | ((four & 0xffff0000u) << 16);
    std::memcpy(to, &four, 8);
}

// A segment of a row of x to whole numbers of at most `largest`, rounded to the nearest, ties to even. One that holds
// infinity or not-a-number gets not-a-number as its scale, which the row's sums then become.
template <class Number, int32_t largest>
inline void quantize_segment(const LinearQuantize& work, int64_t index, int64_t row) {
    constexpr int64_t quad_bytes = 4 * static_cast<int64_t>(sizeof(Number));
    // 1.5 * 2^23: adding it leaves the nearest integer in a float's low bits, under these high ones.
    const Floats magic = broadcast(12582912.0f);
    constexpr uint32_t magic_bits = 0x4b400000u;
    const LinearSegment segment = work.segments[index];
    const QuantizedRows& to = work.to;
    const float* x = work.x + row * work.x_stride;
    const int64_t length = segment.length;
    const int64_t padded = round_up(length, 16);
    alignas(64) float copy[max_segment];
    const float* from = x + segment.begin;
    if (padded != length) {
        std::memcpy(copy, from, static_cast<size_t>(length) * sizeof(float));
        for (int64_t i = length; i < padded; ++i) copy[i] = 0.0f;
        from = copy;
    }
    Ints magnitudes = {};  // as whole numbers floats' magnitudes keep their order, and not-a-number is the largest
    for (int64_t i = 0; i < padded; i += lanes) {
        const Ints magnitude = as_ints(load(from + i)) & INT32_MAX;
        magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
    }
    const int32_t bits = largest_of(magnitudes);
    const float magnitude = float_of(static_cast<uint32_t>(bits));
    const bool is_finite = bits < 0x7f800000;
    const bool is_scaled = is_finite && magnitude >= smallest_scaled;
    const float factor = is_scaled ? static_cast<float>(largest) / magnitude : 0.0f;
    const float scale = is_scaled ? magnitude / static_cast<float>(largest) : 0.0f;

    alignas(64) Number numbers[max_segment];
    Bits sums = {};  // wraps around
    for (int64_t i = 0; i < padded; i += lanes) {
        const Ints shifted = as_ints(load(from + i) * factor + magic);
        sums += (Bits)shifted;
        store_low_bits(shifted, numbers + i);
    }
    const uint32_t sum = sum_of(sums) - static_cast<uint32_t>(padded) * magic_bits;
    to.scales[index * work.num_rows + row] = is_finite ? scale : float_of(0x7fc00000u);
    to.start[index * work.num_rows + row] = static_cast<int32_t>(0u - static_cast<uint32_t>(work.offset) * sum);

    char* values =
        to.values + segment.padded_begin * static_cast<int64_t>(sizeof(Number)) * work.num_rows + row * quad_bytes;
    const int64_t num_quads = (length + 7) / 8 * 2;
    for (int64_t quad = 0; quad < num_quads; ++quad) {
        store_quad(numbers + 4 * quad, values);
        values += quad_bytes * work.num_rows;
    }
}

template <class Number, int32_t largest>
void quantize_rows(const LinearQuantize& work) {
    for (int64_t index = work.first_segment; index < work.end_segment; ++index) {
        for (int64_t row = 0; row < work.num_rows; ++row) {
            quantize_segment<Number, largest>(work, index, row);
        }
    }
}

inline void dequantize_segment(const char* panel, const LinearSegment& segment, bool is_int4, float* to) {
    const int32_t zero = is_int4 ? 8 : 128;
    const int num_numbers = is_int4 ? 8 : 4;  // in a word
    for (int64_t column = 0; column < panel_width; column += lanes) {
        const Floats scales = load(reinterpret_cast<const float*>(panel + segment.scales) + column);
        const char* from = panel + segment.data + 4 * column;
        for (int64_t input = 0; input < segment.length; input += num_numbers, from += 128) {
            Ints words;
            std::memcpy(&words, from, sizeof words);
            const int64_t rest = segment.length - input < num_numbers ? segment.length - input : num_numbers;
            for (int64_t i = 0; i < rest; ++i) {
                const int shift = static_cast<int>(is_int4 ? i % 4 * 8 + i / 4 * 4 : i * 8);
                const Ints number = ((words >> shift) & (is_int4 ? 0x0f : 0xff)) - zero;
                store(__builtin_convertvector(number, Floats) * scales, to + (input + i) * panel_width + column);
            }
        }
    }
}

}  // namespace
}  // namespace paged_backend
