#include "linear.h"

#include <algorithm>
#include <stdexcept>

#include "linear_pack.h"
#include "linear_run.h"
#include "runtime.h"
#include "whole_numbers.h"

namespace paged_backend {

namespace {

constexpr int64_t max_rows_at_once = 960;  // bounds the scratch memory
constexpr int64_t float_segment = 128;     // inputs that the float32 route widens at a time
constexpr int64_t int8_segment = 192;      // inputs that share an activation's scale
constexpr int64_t int16_segment = 256;     // 32767 * 255 * 256 < 2^31

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

bool has_tiles(const LinearKernels& kernels, TileFormat format) {
    return kernels.tiles[static_cast<int>(format)][0] != nullptr;
}

int64_t segment_size(LinearRoute route) {
    switch (route) {
        case LinearRoute::int8: return int8_segment;
        case LinearRoute::int16: return int16_segment;
        default: return float_segment;
    }
}

}  // namespace

Activation activation_of(const std::string& name) {
    static constexpr struct {
        const char* name;
        Activation activation;
    } names[] = {
        {"", Activation::none},
        {"gelu", Activation::gelu},
        {"gelu_fast", Activation::gelu_tanh},
        {"gelu_new", Activation::gelu_tanh},
        {"gelu_pytorch_tanh", Activation::gelu_tanh},
        {"quick_gelu", Activation::quick_gelu},
        {"relu", Activation::relu},
        {"relu2", Activation::relu_squared},
        {"sigmoid", Activation::sigmoid},
        {"silu", Activation::silu},
        {"swish", Activation::silu},
        {"tanh", Activation::tanh},
    };
    for (const auto& entry : names) {
        if (name == entry.name) return entry.activation;
    }
    refuse("activation " + name + " is unknown.");
}

LinearRoute linear_route_of(const std::string& name) {
    if (name == "auto") return LinearRoute::automatic;
    if (name == "float32") return LinearRoute::float32;
    if (name == "int16") return LinearRoute::int16;
    if (name == "int8") return LinearRoute::int8;
    refuse("route must be auto, float32, int16 or int8, got " + name + ".");
}

const char* name_of(LinearRoute route) {
    switch (route) {
        case LinearRoute::automatic: return "auto";
        case LinearRoute::float32: return "float32";
        case LinearRoute::int16: return "int16";
        case LinearRoute::int8: return "int8";
    }
    return "";
}

PackedLinear::PackedLinear(Runtime& runtime, const LinearWeights& weights, LinearRoute route)
    : format_(weights.format), gated_(weights.gated), num_inputs_(weights.num_inputs) {
    if (weights.num_rows < 1 || weights.num_inputs < 1) refuse("weight must be [N, K], neither of them 0.");
    // Of a quantised weight each group takes a multiple of 8 inputs.
    if (weights.num_inputs > INT32_MAX / 8) {
        refuse("weight must have at most " + std::to_string(INT32_MAX / 8) + " inputs, got " +
               std::to_string(weights.num_inputs) + ".");
    }
    if (weights.gated && weights.num_rows % 2 != 0) {
        refuse("a gated weight must have as many gates as ups, got " + std::to_string(weights.num_rows) + " rows.");
    }
    const bool is_quantized = format_ == WeightFormat::int8 || format_ == WeightFormat::int4;
    if (is_quantized && (weights.scales == nullptr || weights.group_size < 1)) {
        refuse("a quantised weight must have scales, and a group_size of 1 or more.");
    }
    const PanelLayout layout(weights);
    num_outputs_ = layout.num_outputs;
    num_panels_ = layout.num_panels;
    panel_stride_ = layout.panel_stride;
    choose_route(runtime, route);
    if (is_quantized) {
        segments_ = segments_of(layout, segment_size(route_));
        padded_inputs_ = segments_.back().padded_begin + round_up(segments_.back().length, 8);
    }
    if (layout.has_bias) bias_begin_ = layout.bias_begin();
    panels_ = runtime.weights().allocate(num_panels_ * panel_stride_);
    runtime.team().run(num_panels_, [&](int64_t panel, int) {
        pack_panel(layout, weights, panel, panels_.data() + panel * panel_stride_);
    });
}

void PackedLinear::choose_route(const Runtime& runtime, LinearRoute route) {
    const LinearKernels& kernels = runtime.kernels().linear;
    const bool is_int4 = format_ == WeightFormat::int4;
    if (!is_int4 && format_ != WeightFormat::int8) {
        if (route != LinearRoute::automatic && route != LinearRoute::float32) {
            refuse(std::string("route ") + name_of(route) + " is for quantised weights only.");
        }
        route_ = LinearRoute::float32;
        tile_format_ = format_ == WeightFormat::float32    ? TileFormat::float32
                       : format_ == WeightFormat::bfloat16 ? TileFormat::bfloat16
                                                           : TileFormat::float16;
        return;
    }
    const TileFormat int8 = is_int4 ? TileFormat::int4_int8 : TileFormat::int8_int8;
    const TileFormat int16 = is_int4 ? TileFormat::int4_int16 : TileFormat::int8_int16;
    if (route == LinearRoute::automatic) {
        route = has_tiles(kernels, int8)    ? LinearRoute::int8
                : has_tiles(kernels, int16) ? LinearRoute::int16
                                            : LinearRoute::float32;
    }
    route_ = route;
    tile_format_ = route == LinearRoute::int8 ? int8 : route == LinearRoute::int16 ? int16 : TileFormat::float32;
    if (!has_tiles(kernels, tile_format_)) {
        refuse(std::string("route ") + name_of(route) + " is not there with instruction set " +
               runtime.instruction_set() + ".");
    }
}

void PackedLinear::check(const Runtime& runtime, const LinearCall& call) const {
    if (call.num_rows < 0) refuse("x must not have less than 0 rows.");
    if (call.num_rows == 0) return;
    if (call.x == nullptr || call.out == nullptr) refuse("x and out must be there.");
    if (call.num_rows > 1 && call.out_stride < num_outputs_) refuse("out's rows must not overlap.");
    if (gated_ && call.residual != nullptr) refuse("a gated layer takes no residual.");
    if (!has_tiles(runtime.kernels().linear, tile_format_)) {
        refuse("the layer was packed for another instruction set than " + runtime.instruction_set() + ".");
    }
}

void PackedLinear::run(Runtime& runtime, const LinearCall& call) const {
    check(runtime, call);
    for (int64_t first = 0; first < call.num_rows; first += max_rows_at_once) {
        LinearCall part = call;
        part.num_rows = std::min(max_rows_at_once, call.num_rows - first);
        part.x += first * call.x_stride;
        part.out += first * call.out_stride;
        if (call.residual != nullptr) part.residual += first * call.residual_stride;
        LinearRun(*this, runtime, part).run();
    }
}

}  // namespace paged_backend
