// Where the numbers of a packed linear layer lie, and how they get there.
#pragma once

#include "linear.h"

namespace paged_backend {

// A panel of 32 outputs holds, for floats, its inputs one after the other: float32 [K][32]; bfloat16 [K][16] words,
// column j in the low and 16 + j in the high half; float16 [K][32]. A quantised panel holds group after group: the
// numbers, the group padded with zeros to a multiple of 8 inputs, then 32 scales, float32. int8 [K/4][32][4] as
// unsigned bytes, 128 more than the number; int4 [K/8][32][4], byte j of 8 inputs holds input j in its low half and 4 +
// j in its high half, 8 more than the number. Behind all that comes the bias, if there is one: 32 float32. A gated
// layer's panel has 16 gates as its low columns, and their ups as its high columns.
struct PanelLayout {
    WeightFormat format;
    bool gated;
    bool has_bias;
    int64_t num_outputs;
    int64_t num_inputs;
    int64_t group_size;  // num_inputs for floats
    int64_t num_groups;
    int64_t group_stride;  // bytes from group to group; the last may be shorter
    int64_t panel_stride;  // bytes
    int64_t num_panels;

    explicit PanelLayout(const LinearWeights& weights);

    bool is_quantized() const { return format == WeightFormat::int8 || format == WeightFormat::int4; }
    int64_t bias_begin() const;  // bytes from the panel's begin
    int64_t length_of(int64_t group) const;
    int64_t data_of(int64_t group) const { return group * group_stride; }
    int64_t scales_of(int64_t group) const;
    // The weight's row of a panel's column, or -1 past the last.
    int64_t row_of(int64_t panel, int64_t column) const;
};

// Groups cut into segments of at most `size` inputs, a multiple of 8.
std::vector<LinearSegment> segments_of(const PanelLayout& layout, int64_t size);

// Writes one panel, padding included.
void pack_panel(const PanelLayout& layout, const LinearWeights& weights, int64_t panel, char* to);

}  // namespace paged_backend
