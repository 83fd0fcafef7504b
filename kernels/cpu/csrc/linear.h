// Packed linear layers: y = act(x @ weight.T + bias) + residual, or act(gate) * up for a gated layer.
//
// The weight lies in panels of 32 outputs, so that the innermost loop reads memory in one direction only. Every output
// has one accumulator that runs over the inputs in their order, in tiles of any shape: its bits depend on its own row
// of x alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aligned_memory.h"

namespace paged_backend {

class Runtime;

enum class Activation { none, silu, gelu, gelu_tanh, quick_gelu, relu, relu_squared, sigmoid, tanh };

// By Hugging Face's name ("gelu_new", "swish", ...); "" is none. Throws std::invalid_argument for an unknown one.
Activation activation_of(const std::string& name);

// How a weight is given, and held. The last two are int8 numbers with scales.
enum class WeightFormat { float32, bfloat16, float16, int8, int4 };

// The arithmetic of quantised weights: float32 products, or whole-number dot products of activations that are
// quantised to 16 or 8 bits, per row and per segment (LinearSegment). Float weights have float32 only.
enum class LinearRoute { automatic, float32, int16, int8 };

LinearRoute linear_route_of(const std::string& name);  // "auto", "float32", "int16", "int8"
const char* name_of(LinearRoute route);

// A weight [num_rows, num_inputs] to pack. Pointers are not kept.
struct LinearWeights {
    WeightFormat format = WeightFormat::float32;
    const void* values = nullptr;  // int8: -127 .. 127 (int4: -8 .. 7), one number a byte
    int64_t num_rows = 0;          // a gated layer's are all gates, then all ups
    int64_t num_inputs = 0;
    int64_t row_stride = 0;         // in numbers
    const float* scales = nullptr;  // [num_rows, ceil(num_inputs / group_size)], for int8 and int4
    int64_t group_size = 0;
    const float* bias = nullptr;  // [num_rows] or null
    bool gated = false;
};

// Pointers stay the caller's; strides in floats.
struct LinearCall {
    const float* x = nullptr;  // [num_rows, num_inputs]
    int64_t x_stride = 0;
    int64_t num_rows = 0;
    float* out = nullptr;  // [num_rows, num_outputs]; may be `residual`, must not overlap x
    int64_t out_stride = 0;
    const float* residual = nullptr;  // [num_rows, num_outputs] or null
    int64_t residual_stride = 0;
    Activation activation = Activation::none;
};

// What an instruction set provides.

constexpr int64_t panel_width = 32;
constexpr int64_t max_tile_rows = 12;
constexpr int64_t max_segment = 256;

// Inputs that share both scales: part of a weight's group.
struct LinearSegment {
    int64_t data;          // bytes from the panel's begin to its numbers
    int64_t scales;        // bytes from the panel's begin to its 32 scales, float32
    int32_t length;        // inputs
    int32_t begin;         // first input
    int32_t padded_begin;  // the same where each segment takes a multiple of 8 numbers
};

// Rows of x, quantised. Numbers of 4 inputs lie together, then the next row's: [padded inputs / 4][rows][4].
struct QuantizedRows {
    char* values;
    float* scales;  // [segments][rows]
    // [segments][rows], what the sums begin with: minus the weights' offset times the sum of the values.
    int32_t* start;
};

// Rounds a block of rows of x to whole numbers, in some of the segments.
struct LinearQuantize {
    const float* x;
    int64_t x_stride;
    int64_t num_rows;  // of the block
    const LinearSegment* segments;
    int64_t first_segment;
    int64_t end_segment;
    int32_t offset;  // what the packed weights are too large by
    QuantizedRows to;
};

// Adds the products of some rows and a panel to sums, over all inputs of a block of them.
struct LinearTile {
    const char* panel;  // floats: at the block's first input
    float* sums;        // [rows][32]
    // Float weights:
    const float* x;
    int64_t x_stride;
    int64_t num_inputs;
    // Quantised weights:
    QuantizedRows rows;
    const LinearSegment* segments;
    int64_t first_segment;
    int64_t end_segment;
};

using TileFunction = void (*)(const LinearTile&);

enum class TileFormat { float32, bfloat16, float16, int8_int8, int8_int16, int4_int8, int4_int16 };
constexpr int num_tile_formats = 7;

struct LinearFinish {
    const float* sums;  // [num_rows][32]
    const float* bias;  // [32] or null
    int64_t num_rows;
    int64_t num_columns;  // outputs of this panel: up to 32, 16 for a gated one
    float* out;
    int64_t out_stride;
    const float* residual;
    int64_t residual_stride;
    Activation activation;
    bool gated;
};

struct LinearKernels {
    int64_t max_rows;  // of a tile
    // By format and rows - 1; null where there is none.
    TileFunction tiles[num_tile_formats][max_tile_rows];
    void (*quantize_int8)(const LinearQuantize&);
    void (*quantize_int16)(const LinearQuantize&);
    // One segment of a panel as floats [length][32].
    void (*dequantize)(const char* panel, const LinearSegment& segment, bool is_int4, float* to);
    void (*finish)(const LinearFinish&);
};

// The layer.
class PackedLinear {
  public:
    // Packs on the runtime's team; the caller holds runtime.turn(). Throws std::invalid_argument.
    PackedLinear(Runtime& runtime, const LinearWeights& weights, LinearRoute route);

    int64_t num_inputs() const { return num_inputs_; }
    int64_t num_outputs() const { return num_outputs_; }  // half of the weight's rows for a gated layer
    int64_t num_bytes() const { return panels_.size(); }
    bool is_gated() const { return gated_; }
    WeightFormat format() const { return format_; }
    LinearRoute route() const { return route_; }  // never automatic

    // Runs on the runtime's team; the caller holds runtime.turn(). The runtime's instruction set must be the one of
    // the constructor. Throws std::invalid_argument for a wrong call, before anything is written.
    void run(Runtime& runtime, const LinearCall& call) const;

  private:
    friend class LinearRun;

    void choose_route(const Runtime& runtime, LinearRoute route);
    void check(const Runtime& runtime, const LinearCall& call) const;

    WeightFormat format_;
    LinearRoute route_ = LinearRoute::float32;
    TileFormat tile_format_ = TileFormat::float32;
    bool gated_;
    int64_t num_inputs_;
    int64_t num_outputs_;
    int64_t num_panels_;
    int64_t panel_stride_ = 0;             // bytes
    int64_t padded_inputs_ = 0;            // of quantised rows
    std::vector<LinearSegment> segments_;  // of quantised weights
    int64_t bias_begin_ = -1;              // bytes from a panel's begin; -1 for none
    AlignedMemory panels_;
};

}  // namespace paged_backend
