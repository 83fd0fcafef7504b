#include "linear_pack.h"

#include <algorithm>
#include <cstring>

#include "whole_numbers.h"

namespace paged_backend {

namespace {

constexpr int64_t scales_bytes = panel_width * static_cast<int64_t>(sizeof(float));

int64_t padded(int64_t num_inputs) { return round_up(num_inputs, 8); }

int64_t bytes_of_inputs(WeightFormat format, int64_t num_inputs) {
    switch (format) {
        case WeightFormat::float32: return num_inputs * panel_width * 4;
        case WeightFormat::bfloat16:
        case WeightFormat::float16: return num_inputs * panel_width * 2;
        case WeightFormat::int8: return padded(num_inputs) * panel_width;
        case WeightFormat::int4: return padded(num_inputs) * panel_width / 2;
    }
    return 0;
}

// Calls store(input, column, number) for all of inputs begin .. end - 1, some inputs of all columns at a time: both
// sides then stay in the nearest cache.
template <class Number, class Store>
void visit(const PanelLayout& layout, const LinearWeights& weights, int64_t panel, int64_t begin, int64_t end,
           const Store& store) {
    constexpr int64_t step = 32;
    for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(first + step, end);
        for (int64_t column = 0; column < panel_width; ++column) {
            const int64_t row = layout.row_of(panel, column);
            if (row < 0) continue;
            const Number* numbers = static_cast<const Number*>(weights.values) + row * weights.row_stride;
            for (int64_t input = first; input < last; ++input) store(input, column, numbers[input]);
        }
    }
}

void pack_group(const PanelLayout& layout, const LinearWeights& weights, int64_t panel, int64_t group, char* to) {
    const int64_t begin = group * layout.group_size;
    const int64_t length = layout.length_of(group);
    uint8_t* numbers = reinterpret_cast<uint8_t*>(to + layout.data_of(group));
    const size_t num_bytes = static_cast<size_t>(bytes_of_inputs(layout.format, length));
    if (layout.format == WeightFormat::int8) {
        std::memset(numbers, 128, num_bytes);
        visit<int8_t>(layout, weights, panel, begin, begin + length, [&](int64_t input, int64_t column, int8_t number) {
            const int64_t i = input - begin;
            numbers[i / 4 * 128 + column * 4 + i % 4] = static_cast<uint8_t>(number + 128);
        });
    } else {
        std::memset(numbers, 0x88, num_bytes);
        visit<int8_t>(layout, weights, panel, begin, begin + length, [&](int64_t input, int64_t column, int8_t number) {
            const int64_t i = input - begin;
            const int shift = i % 8 / 4 * 4;
            uint8_t& byte = numbers[i / 8 * 128 + column * 4 + i % 4];
            byte = static_cast<uint8_t>((byte & (0xf0 >> shift)) | (((number + 8) & 0x0f) << shift));
        });
    }
    float* scales = reinterpret_cast<float*>(to + layout.scales_of(group));
    for (int64_t column = 0; column < panel_width; ++column) {
        const int64_t row = layout.row_of(panel, column);
        scales[column] = row < 0 ? 0.0f : weights.scales[row * layout.num_groups + group];
    }
}

}  // namespace

PanelLayout::PanelLayout(const LinearWeights& weights)
    : format(weights.format),
      gated(weights.gated),
      has_bias(weights.bias != nullptr),
      num_outputs(weights.gated ? weights.num_rows / 2 : weights.num_rows),
      num_inputs(weights.num_inputs) {
    group_size = is_quantized() ? std::min(weights.group_size, num_inputs) : num_inputs;
    num_groups = divide_up(num_inputs, group_size);
    group_stride = bytes_of_inputs(format, group_size) + (is_quantized() ? scales_bytes : 0);
    const int64_t outputs_in_panel = gated ? panel_width / 2 : panel_width;
    num_panels = divide_up(num_outputs, outputs_in_panel);
    panel_stride = bias_begin() + (has_bias ? scales_bytes : 0);
}

int64_t PanelLayout::bias_begin() const {
    const int64_t last = num_groups - 1;
    return data_of(last) + bytes_of_inputs(format, length_of(last)) + (is_quantized() ? scales_bytes : 0);
}

int64_t PanelLayout::length_of(int64_t group) const { return std::min(group_size, num_inputs - group * group_size); }

int64_t PanelLayout::scales_of(int64_t group) const {
    return data_of(group) + bytes_of_inputs(format, length_of(group));
}

int64_t PanelLayout::row_of(int64_t panel, int64_t column) const {
    if (!gated) {
        const int64_t row = panel * panel_width + column;
        return row < num_outputs ? row : -1;
    }
    const int64_t output = panel * panel_width / 2 + column % 16;
    if (output >= num_outputs) return -1;
    return column < 16 ? output : num_outputs + output;
}

std::vector<LinearSegment> segments_of(const PanelLayout& layout, int64_t size) {
    std::vector<LinearSegment> segments;
    int64_t padded_begin = 0;
    for (int64_t group = 0; group < layout.num_groups; ++group) {
        const int64_t length = layout.length_of(group);
        // As equal as whole words of inputs allow: each one's end costs the same.
        const int64_t count = divide_up(length, size);
        const int64_t share = padded(divide_up(length, count));
        for (int64_t begin = 0; begin < length; begin += share) {
            LinearSegment segment;
            segment.data = layout.data_of(group) + bytes_of_inputs(layout.format, begin);
            segment.scales = layout.scales_of(group);
            segment.length = static_cast<int32_t>(std::min(share, length - begin));
            segment.begin = static_cast<int32_t>(group * layout.group_size + begin);
            segment.padded_begin = static_cast<int32_t>(padded_begin);
            padded_begin += padded(segment.length);
            segments.push_back(segment);
        }
    }
    return segments;
}

void pack_panel(const PanelLayout& layout, const LinearWeights& weights, int64_t panel, char* to) {
    const int64_t num_inputs = layout.num_inputs;
    const int64_t last_column = panel_width - 1;
    if (layout.row_of(panel, last_column) < 0 || !layout.is_quantized()) {
        std::memset(to, 0, static_cast<size_t>(layout.panel_stride));
    }
    if (layout.format == WeightFormat::float32) {
        float* numbers = reinterpret_cast<float*>(to);
        visit<float>(layout, weights, panel, 0, num_inputs, [&](int64_t input, int64_t column, float number) {
            numbers[input * panel_width + column] = number;
        });
    } else if (layout.format == WeightFormat::bfloat16) {
        uint16_t* halves = reinterpret_cast<uint16_t*>(to);  // the low half of a word comes first
        visit<uint16_t>(layout, weights, panel, 0, num_inputs, [&](int64_t input, int64_t column, uint16_t number) {
            halves[input * panel_width + column % 16 * 2 + column / 16] = number;
        });
    } else if (layout.format == WeightFormat::float16) {
        uint16_t* numbers = reinterpret_cast<uint16_t*>(to);
        visit<uint16_t>(layout, weights, panel, 0, num_inputs, [&](int64_t input, int64_t column, uint16_t number) {
            numbers[input * panel_width + column] = number;
        });
    } else {
        for (int64_t group = 0; group < layout.num_groups; ++group) pack_group(layout, weights, panel, group, to);
    }
    if (!layout.has_bias) return;
    float* bias = reinterpret_cast<float*>(to + layout.bias_begin());
    for (int64_t column = 0; column < panel_width; ++column) {
        const int64_t row = layout.row_of(panel, column);
        bias[column] = row < 0 ? 0.0f : weights.bias[row];
    }
}

}  // namespace paged_backend
