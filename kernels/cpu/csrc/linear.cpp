#include "linear.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "linear_pack.h"
#include "runtime.h"

namespace paged_backend {

namespace {

constexpr int64_t max_rows_at_once = 960;       // of a call: bounds the scratch memory
constexpr int64_t max_sums = 64 << 10;          // floats of a task's sums
constexpr int64_t panel_block_bytes = 64 << 10;       // of a panel's K block, which all rows of a task use before the next
constexpr int64_t float_segment = 128;          // inputs that the float32 route widens at a time
constexpr int64_t int8_segment = 128;           // inputs that share an activation's scale
constexpr int64_t int16_segment = 256;          // 32767 * 255 * 256 < 2^31

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The first of part `index` of `num_parts` parts of `size` that are as equal as they can be.
int64_t part_begin(int64_t size, int64_t num_parts, int64_t index) { return size * index / num_parts; }

bool has_tiles(const LinearKernels& kernels, TileFormat format) {
    return kernels.tiles[static_cast<int>(format)][0][0] != nullptr;
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
    if (weights.num_rows < 1 || weights.num_inputs < 1 || weights.num_inputs > INT32_MAX / 2) {
        refuse("weight must be [N, K], neither of them 0.");
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
    bias_.assign(static_cast<size_t>(num_panels_ * panel_width), 0.0f);
    for (int64_t i = 0; weights.bias != nullptr && i < num_panels_ * panel_width; ++i) {
        const int64_t row = layout.row_of(i / panel_width, i % panel_width);
        if (row >= 0) bias_[static_cast<size_t>(i)] = weights.bias[row];
    }
    panels_ = AlignedMemory(num_panels_ * panel_stride_ + 64);
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
        refuse(std::string("route ") + name_of(route) + " is not there with instruction set " + runtime.instruction_set() + ".");
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

// How a call is cut into tasks: some panels times some blocks of rows.
struct PackedLinear::Plan {
    LinearCall call;
    const LinearKernels* kernels;
    int64_t num_row_blocks;    // of at most kernels->max_rows rows
    int64_t num_row_tasks;
    int64_t num_panel_tasks;
    int num_threads;
    char* const* scratch;
    int64_t wide_begin;        // bytes: in each thread's scratch, after the sums: weights as floats
    int64_t rows_begin;        // after those: quantised row blocks
    int64_t rows_bytes;        // of one block

    int64_t first_row(int64_t row_block) const { return part_begin(call.num_rows, num_row_blocks, row_block); }

    // Quantised blocks are spread over all threads' scratch.
    QuantizedRows quantized(int64_t row_block, int64_t values_bytes, int64_t num_segments) const {
        char* begin = scratch[row_block % num_threads] + rows_begin + row_block / num_threads * rows_bytes;
        const int64_t num_scales = num_segments * kernels->max_rows;
        float* scales = reinterpret_cast<float*>(begin + values_bytes);
        return {begin, scales, reinterpret_cast<int32_t*>(scales + num_scales)};
    }
};

void PackedLinear::run(Runtime& runtime, const LinearCall& whole) const {
    check(runtime, whole);
    for (int64_t first = 0; first < whole.num_rows; first += max_rows_at_once) {
        Plan plan;
        plan.call = whole;
        LinearCall& call = plan.call;
        call.num_rows = std::min(max_rows_at_once, whole.num_rows - first);
        call.x += first * call.x_stride;
        call.out += first * call.out_stride;
        if (call.residual != nullptr) call.residual += first * call.residual_stride;

        const LinearKernels& kernels = runtime.kernels().linear;
        plan.kernels = &kernels;
        plan.num_threads = runtime.team().size();
        plan.num_row_blocks = (call.num_rows + kernels.max_rows - 1) / kernels.max_rows;

        // Tasks of some microseconds, and several for each thread: an interrupted one delays the end by little.
        const double bytes = static_cast<double>(num_panels_ * panel_stride_);
        const double products = static_cast<double>(call.num_rows * num_panels_ * panel_width * num_inputs_);
        const double microseconds = std::max(bytes / 60e3, products / 50e3);
        const int64_t threads = plan.num_threads;
        int64_t tasks = std::min(static_cast<int64_t>(microseconds / 2.5), 8 * threads);
        tasks = tasks < 2 || threads == 1 ? 1 : round_up(tasks, threads);
        const int64_t most_rows = std::max<int64_t>(1, max_sums / panel_width / kernels.max_rows);  // blocks
        plan.num_row_tasks = (plan.num_row_blocks + most_rows - 1) / most_rows;
        plan.num_panel_tasks = std::min(num_panels_, tasks);
        const auto sums_of = [&] {
            const int64_t blocks = (plan.num_row_blocks + plan.num_row_tasks - 1) / plan.num_row_tasks;
            const int64_t panels = (num_panels_ + plan.num_panel_tasks - 1) / plan.num_panel_tasks;
            return blocks * kernels.max_rows * panels * panel_width;
        };
        while (sums_of() > max_sums && plan.num_panel_tasks < num_panels_) {
            plan.num_panel_tasks = std::min(num_panels_, plan.num_panel_tasks + std::max<int64_t>(1, threads));
        }
        const bool is_widened = !segments_.empty() && route_ == LinearRoute::float32;
        const bool is_integer = !segments_.empty() && route_ != LinearRoute::float32;
        const int64_t values_bytes = round_up(padded_inputs_ * kernels.max_rows * (route_ == LinearRoute::int16 ? 2 : 1), 64);
        plan.wide_begin = round_up(sums_of() * 4, 64);
        plan.rows_begin = plan.wide_begin + (is_widened ? max_tile_panels * float_segment * panel_width * 4 : 0);
        plan.rows_bytes = round_up(values_bytes + 8 * kernels.max_rows * static_cast<int64_t>(segments_.size()), 64);
        const int64_t blocks_a_thread = (plan.num_row_blocks + threads - 1) / threads;
        plan.scratch = runtime.scratch(plan.rows_begin + (is_integer ? blocks_a_thread * plan.rows_bytes : 0));

        if (is_integer) {
            if (call.num_rows * num_inputs_ < 16384 || plan.num_row_blocks == 1) {
                for (int64_t block = 0; block < plan.num_row_blocks; ++block) quantize_rows(plan, block);
            } else {
                runtime.team().run(plan.num_row_blocks, [&](int64_t block, int) { quantize_rows(plan, block); });
            }
        }
        runtime.team().run(plan.num_panel_tasks * plan.num_row_tasks,
                           [&](int64_t task, int thread) { run_task(plan, task, thread); });
    }
}

void PackedLinear::quantize_rows(const Plan& plan, int64_t row_block) const {
    const bool is_int16 = route_ == LinearRoute::int16;
    const auto quantize = is_int16 ? plan.kernels->quantize_int16 : plan.kernels->quantize_int8;
    const int64_t num_segments = static_cast<int64_t>(segments_.size());
    const int64_t values_bytes = round_up(padded_inputs_ * plan.kernels->max_rows * (is_int16 ? 2 : 1), 64);
    const QuantizedRows rows = plan.quantized(row_block, values_bytes, num_segments);
    const int64_t begin = plan.first_row(row_block);
    const int64_t num_rows = plan.first_row(row_block + 1) - begin;
    const int32_t offset = format_ == WeightFormat::int4 ? 8 : 128;
    for (int64_t row = 0; row < num_rows; ++row) {
        quantize(plan.call.x + (begin + row) * plan.call.x_stride, segments_.data(), num_segments, row, num_rows, offset, rows);
    }
}

void PackedLinear::run_task(const Plan& plan, int64_t task, int thread) const {
    const LinearKernels& kernels = *plan.kernels;
    const LinearCall& call = plan.call;
    const int64_t panel_task = task / plan.num_row_tasks, row_task = task % plan.num_row_tasks;
    const int64_t first_panel = part_begin(num_panels_, plan.num_panel_tasks, panel_task);
    const int64_t end_panel = part_begin(num_panels_, plan.num_panel_tasks, panel_task + 1);
    const int64_t first_block = part_begin(plan.num_row_blocks, plan.num_row_tasks, row_task);
    const int64_t end_block = part_begin(plan.num_row_blocks, plan.num_row_tasks, row_task + 1);
    const int64_t first_row = plan.first_row(first_block);
    const int64_t num_rows = plan.first_row(end_block) - first_row;
    float* all_sums = reinterpret_cast<float*>(plan.scratch[thread]);
    float* wide = reinterpret_cast<float*>(plan.scratch[thread] + plan.wide_begin);
    std::memset(all_sums, 0, static_cast<size_t>((end_panel - first_panel) * num_rows * panel_width) * sizeof(float));

    const bool is_quantized = !segments_.empty();
    const bool is_widened = is_quantized && route_ == LinearRoute::float32;
    const int64_t num_segments = static_cast<int64_t>(segments_.size());
    const int64_t values_bytes = round_up(padded_inputs_ * kernels.max_rows * (route_ == LinearRoute::int16 ? 2 : 1), 64);
    const int64_t most_rows = (call.num_rows + plan.num_row_blocks - 1) / plan.num_row_blocks;  // of a block
    const auto& tiles = kernels.tiles[static_cast<int>(tile_format_)];

    LinearTile tile = {};
    tile.panel_stride = panel_stride_;
    tile.sums_stride = num_rows * panel_width;
    tile.x_stride = call.x_stride;
    tile.segments = segments_.data();

    // A K block is as long as all rows of the task can use it from the caches; with one block of rows it is everything.
    const bool is_one = end_block - first_block == 1 && !is_widened;
    const int64_t input_bytes = std::max<int64_t>(1, panel_stride_ / num_inputs_);
    const int64_t block_inputs = is_one ? num_inputs_ : is_widened ? float_segment : std::max<int64_t>(int16_segment, std::min<int64_t>(panel_block_bytes / input_bytes, is_quantized ? 2048 : 512));
    int64_t first_segment = 0;
    for (int64_t first = 0; first < num_inputs_;) {
        int64_t end = std::min(num_inputs_, first + block_inputs);
        int64_t end_segment = first_segment;
        if (is_quantized) {
            end = first;
            do {
                end += segments_[static_cast<size_t>(end_segment++)].length;
            } while (end_segment < num_segments && end - first + segments_[static_cast<size_t>(end_segment)].length <= block_inputs);
        }
        for (int64_t panel = first_panel; panel < end_panel;) {
            int log_panels = 2;
            while (log_panels > 0 && (tiles[most_rows - 1][log_panels] == nullptr ||
                                      panel + (int64_t{1} << log_panels) > end_panel)) {
                --log_panels;
            }
            const int64_t num_panels = int64_t{1} << log_panels;
            tile.panels = panels_.data() + panel * panel_stride_;
            tile.panel_stride = panel_stride_;
            if (is_widened) {
                for (int64_t i = 0; i < num_panels; ++i) {
                    for (int64_t s = first_segment; s < end_segment; ++s) {
                        const LinearSegment& segment = segments_[static_cast<size_t>(s)];
                        kernels.dequantize(tile.panels + i * panel_stride_, segment, format_ == WeightFormat::int4,
                                           wide + (i * float_segment + segment.begin - first) * panel_width);
                    }
                }
                tile.panels = reinterpret_cast<const char*>(wide);
                tile.panel_stride = float_segment * panel_width * static_cast<int64_t>(sizeof(float));
            } else if (!is_quantized) {
                tile.panels += first * (format_ == WeightFormat::float32 ? 4 : 2) * panel_width;
            }
            for (int64_t block = first_block; block < end_block; ++block) {
                const int64_t row = plan.first_row(block);
                const int64_t rows = plan.first_row(block + 1) - row;
                tile.sums = all_sums + ((panel - first_panel) * num_rows + row - first_row) * panel_width;
                if (is_quantized && !is_widened) {
                    tile.rows = plan.quantized(block, values_bytes, num_segments);
                    tile.first_segment = first_segment;
                    tile.end_segment = end_segment;
                } else {
                    tile.x = call.x + row * call.x_stride + first;
                    tile.num_inputs = end - first;
                }
                tiles[rows - 1][log_panels](tile);
            }
            panel += num_panels;
        }
        first = end;
        first_segment = end_segment;
    }

    const int64_t width = gated_ ? panel_width / 2 : panel_width;
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        LinearFinish finish;
        finish.sums = all_sums + (panel - first_panel) * num_rows * panel_width;
        finish.bias = bias_.data() + panel * panel_width;
        finish.num_rows = num_rows;
        finish.num_columns = std::min(width, num_outputs_ - panel * width);
        finish.out = call.out + first_row * call.out_stride + panel * width;
        finish.out_stride = call.out_stride;
        finish.residual = call.residual == nullptr ? nullptr : call.residual + first_row * call.residual_stride + panel * width;
        finish.residual_stride = call.residual_stride;
        finish.activation = call.activation;
        finish.gated = gated_;
        kernels.finish(finish);
    }
}

}  // namespace paged_backend
