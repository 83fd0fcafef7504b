// Between floats and small whole numbers: rows of x on their way into the integer dot products, and weights on their
// way out of a panel.
#pragma once

#include "linear.h"
#include "simd.h"

namespace paged_backend {
namespace {

// Numbers that are all smaller count as zeros: their factor would be too large for a float.
constexpr float smallest_scaled = 0x1p-100f;

// A segment of x to whole numbers of at most `largest`, rounded to the nearest, ties to even. A segment that holds
// infinity or not-a-number gets zeros and not-a-number as its scale, which the row's sums then become.
template <class Number, int32_t largest>
void quantize_row(const float* x, const LinearSegment* segments, int64_t num_segments, int64_t row, int64_t num_rows,
                  int32_t offset, const QuantizedRows& to) {
    constexpr int64_t quad_bytes = 4 * static_cast<int64_t>(sizeof(Number));
    typedef Number Numbers __attribute__((vector_size(PAGED_BACKEND_LANES * sizeof(Number))));
    for (int64_t index = 0; index < num_segments; ++index) {
        const LinearSegment segment = segments[index];
        const int64_t length = segment.length;
        const int64_t padded = (length + 15) / 16 * 16;
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
            const Ints is_larger = magnitude > magnitudes;
            magnitudes = (magnitude & is_larger) | (magnitudes & ~is_larger);
        }
        int32_t bits = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) bits = magnitudes[lane] > bits ? magnitudes[lane] : bits;
        const float magnitude = float_of(static_cast<uint32_t>(bits));
        const bool is_finite = bits < 0x7f800000;
        const bool is_zero = !is_finite || magnitude < smallest_scaled;
        const float factor = is_zero ? 0.0f : static_cast<float>(largest) / magnitude;

        alignas(64) Number numbers[max_segment];
        Ints sums = {};
        const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        for (int64_t i = 0; i < padded; i += lanes) {
            const Floats value = is_zero ? Floats{} : load(from + i);
            const Ints whole = as_ints(value * factor + magic) - 0x4b400000;
            sums += whole;
            const Numbers small = __builtin_convertvector(whole, Numbers);
            std::memcpy(numbers + i, &small, sizeof small);
        }
        int32_t sum = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) sum += sums[lane];
        to.scales[index * num_rows + row] = is_finite ? (is_zero ? 0.0f : magnitude / static_cast<float>(largest)) : float_of(0x7fc00000u);
        to.start[index * num_rows + row] = -offset * sum;

        char* values = to.values + segment.padded_begin * static_cast<int64_t>(sizeof(Number)) * num_rows + row * quad_bytes;
        const int64_t num_quads = (length + 7) / 8 * 2;
        for (int64_t quad = 0; quad < num_quads; ++quad) {
            if constexpr (sizeof(Number) == 1) {
                std::memcpy(values, numbers + 4 * quad, 4);
            } else {  // k0 k2 k1 k3, see Int16Rows
                uint64_t four;
                std::memcpy(&four, numbers + 4 * quad, 8);
                four = (four & 0xffff00000000ffffu) | ((four >> 16) & 0xffff0000u) | ((four & 0xffff0000u) << 16);
                std::memcpy(values, &four, 8);
            }
            values += quad_bytes * num_rows;
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
