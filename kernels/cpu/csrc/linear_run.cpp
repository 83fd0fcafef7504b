#include "linear_run.h"

#include <algorithm>
#include <cstring>

#include "runtime.h"

namespace paged_backend {

namespace {

constexpr int64_t max_sums = 64 << 10;           // floats of a task's sums
constexpr int64_t input_block_bytes = 64 << 10;  // of a panel's weights: what the second nearest cache keeps
constexpr int64_t max_float_inputs = 512;        // of an input block: twelve rows of x stay in the nearest cache
constexpr int64_t max_quantized_inputs = 2048;
constexpr int64_t widened_inputs = 256;
constexpr double task_microseconds = 2.5;    // at least: what handing out a task costs must not count
constexpr int64_t tasks_a_thread = 8;        // at most: so that the last ones end together
constexpr int64_t parallel_numbers = 16384;  // of x: from here on its rows are quantised in parallel

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The first of part `index` of `num_parts` parts of `size` that are as equal as they can be.
int64_t part_begin(int64_t size, int64_t num_parts, int64_t index) { return size * index / num_parts; }

// The tiles' loops fetch ahead what lies behind their place: nobody else fetches where they begin.
void prefetch_begin(const char* panel) {
    for (int64_t line = 0; line < 2048; line += 64) __builtin_prefetch(panel + line);
}

}  // namespace

LinearRun::LinearRun(const PackedLinear& layer, Runtime& runtime, const LinearCall& call)
    : layer_(layer),
      runtime_(runtime),
      call_(call),
      kernels_(runtime.kernels().linear),
      num_row_blocks_((call.num_rows + kernels_.max_rows - 1) / kernels_.max_rows) {
    choose_tasks();
    take_scratch();
}

void LinearRun::run() {
    if (is_integer()) {
        prefetch_begin(layer_.panels_.data());
        if (num_row_blocks_ == 1 || call_.num_rows * layer_.num_inputs_ < parallel_numbers) {
            for (int64_t block = 0; block < num_row_blocks_; ++block) quantize_rows(block);
        } else {
            runtime_.team().run(num_row_blocks_, [this](int64_t block, int) { quantize_rows(block); });
        }
    }
    runtime_.team().run(num_panel_tasks_ * num_row_tasks_,
                        [this](int64_t task, int thread) { run_task(task, thread); });
}

// Tasks of some microseconds, several for each thread: an interrupted one delays the end by little.
void LinearRun::choose_tasks() {
    const int64_t num_threads = runtime_.team().size();
    const double bytes = static_cast<double>(layer_.num_panels_ * layer_.panel_stride_);
    const double products = static_cast<double>(call_.num_rows * layer_.num_panels_ * panel_width * layer_.num_inputs_);
    const double microseconds = std::max(bytes / 60e3, products / 50e3);  // on one thread, roughly
    const int64_t wanted =
        std::min(static_cast<int64_t>(microseconds / task_microseconds), tasks_a_thread * num_threads);
    num_panel_tasks_ = wanted < 2 || num_threads == 1 ? 1 : std::min(round_up(wanted, num_threads), layer_.num_panels_);
    const int64_t most_blocks = std::max<int64_t>(1, max_sums / panel_width / kernels_.max_rows);
    num_row_tasks_ = (num_row_blocks_ + most_blocks - 1) / most_blocks;
    while (sums_floats() > max_sums && num_panel_tasks_ < layer_.num_panels_) {
        num_panel_tasks_ = std::min(layer_.num_panels_, num_panel_tasks_ + num_threads);
    }
}

void LinearRun::take_scratch() {
    const int64_t num_threads = runtime_.team().size();
    const int64_t num_segments = static_cast<int64_t>(layer_.segments_.size());
    const int64_t number_bytes = layer_.route_ == LinearRoute::int16 ? 2 : 1;
    constexpr int64_t float_bytes = sizeof(float);
    values_bytes_ = round_up(layer_.padded_inputs_ * kernels_.max_rows * number_bytes, 64);
    rows_bytes_ = round_up(values_bytes_ + 2 * float_bytes * kernels_.max_rows * num_segments, 64);
    wide_begin_ = round_up(sums_floats() * float_bytes, 64);
    rows_begin_ = wide_begin_ + (is_widened() ? widened_inputs * panel_width * float_bytes : 0);
    const int64_t blocks_a_thread = is_integer() ? (num_row_blocks_ + num_threads - 1) / num_threads : 0;
    scratch_ = runtime_.scratch(rows_begin_ + blocks_a_thread * rows_bytes_);
}

int64_t LinearRun::first_row(int64_t row_block) const { return part_begin(call_.num_rows, num_row_blocks_, row_block); }

int64_t LinearRun::sums_floats() const {
    const int64_t blocks = (num_row_blocks_ + num_row_tasks_ - 1) / num_row_tasks_;
    const int64_t panels = (layer_.num_panels_ + num_panel_tasks_ - 1) / num_panel_tasks_;
    return blocks * kernels_.max_rows * panels * panel_width;
}

// Blocks of quantised rows are spread over all threads' scratch.
QuantizedRows LinearRun::quantized(int64_t row_block) const {
    const int64_t num_threads = runtime_.team().size();
    char* begin = scratch_[row_block % num_threads] + rows_begin_ + row_block / num_threads * rows_bytes_;
    float* scales = reinterpret_cast<float*>(begin + values_bytes_);
    const int64_t num_scales = static_cast<int64_t>(layer_.segments_.size()) * kernels_.max_rows;
    return {begin, scales, reinterpret_cast<int32_t*>(scales + num_scales)};
}

void LinearRun::quantize_rows(int64_t row_block) const {
    const auto quantize = layer_.route_ == LinearRoute::int16 ? kernels_.quantize_int16 : kernels_.quantize_int8;
    const QuantizedRows rows = quantized(row_block);
    const int64_t begin = first_row(row_block);
    const int64_t num_rows = first_row(row_block + 1) - begin;
    const int32_t offset = layer_.format_ == WeightFormat::int4 ? 8 : 128;
    for (int64_t row = 0; row < num_rows; ++row) {
        const float* x = call_.x + (begin + row) * call_.x_stride;
        quantize(x, layer_.segments_.data(), static_cast<int64_t>(layer_.segments_.size()), row, num_rows, offset,
                 rows);
    }
}

void LinearRun::run_task(int64_t index, int thread) const {
    Task task;
    const int64_t panel_task = index / num_row_tasks_, row_task = index % num_row_tasks_;
    task.first_panel = part_begin(layer_.num_panels_, num_panel_tasks_, panel_task);
    task.end_panel = part_begin(layer_.num_panels_, num_panel_tasks_, panel_task + 1);
    prefetch_begin(layer_.panels_.data() + task.first_panel * layer_.panel_stride_);
    task.first_block = part_begin(num_row_blocks_, num_row_tasks_, row_task);
    task.end_block = part_begin(num_row_blocks_, num_row_tasks_, row_task + 1);
    task.first_row = first_row(task.first_block);
    task.num_rows = first_row(task.end_block) - task.first_row;
    task.sums = reinterpret_cast<float*>(scratch_[thread]);
    task.wide = reinterpret_cast<float*>(scratch_[thread] + wide_begin_);
    const int64_t num_panels = task.end_panel - task.first_panel;
    std::memset(task.sums, 0, static_cast<size_t>(num_panels * task.num_rows * panel_width) * sizeof(float));

    const int64_t num_inputs = inputs_at_once(task);
    for (InputBlock block = block_after({0, 0, 0, 0}, num_inputs); block.first < layer_.num_inputs_;
         block = block_after(block, num_inputs)) {
        for (int64_t panel = task.first_panel; panel < task.end_panel; ++panel) add_products(task, block, panel);
    }
    for (int64_t panel = task.first_panel; panel < task.end_panel; ++panel) finish(task, panel);
}

int64_t LinearRun::inputs_at_once(const Task& task) const {
    if (is_widened()) return widened_inputs;
    if (task.end_block - task.first_block == 1) return layer_.num_inputs_;  // nobody would use them again
    const int64_t input_bytes = std::max<int64_t>(1, layer_.panel_stride_ / layer_.num_inputs_);
    return std::min(input_block_bytes / input_bytes, is_quantized() ? max_quantized_inputs : max_float_inputs);
}

// num_inputs of them, or as many whole segments as that holds, but one at least.
LinearRun::InputBlock LinearRun::block_after(const InputBlock& before, int64_t num_inputs) const {
    InputBlock block = {before.end, before.end, before.end_segment, before.end_segment};
    if (!is_quantized()) {
        block.end = std::min(layer_.num_inputs_, block.first + num_inputs);
        return block;
    }
    const int64_t num_segments = static_cast<int64_t>(layer_.segments_.size());
    while (block.end_segment < num_segments) {
        const int64_t length = layer_.segments_[static_cast<size_t>(block.end_segment)].length;
        if (block.end > block.first && block.end + length > block.first + num_inputs) break;
        block.end += length;
        ++block.end_segment;
    }
    return block;
}

void LinearRun::add_products(const Task& task, const InputBlock& block, int64_t panel) const {
    LinearTile tile = {};
    tile.panel = layer_.panels_.data() + panel * layer_.panel_stride_;
    tile.x_stride = call_.x_stride;
    tile.num_inputs = block.end - block.first;
    tile.segments = layer_.segments_.data();
    tile.first_segment = block.first_segment;
    tile.end_segment = block.end_segment;
    if (is_widened()) {
        for (int64_t i = block.first_segment; i < block.end_segment; ++i) {
            const LinearSegment& segment = layer_.segments_[static_cast<size_t>(i)];
            kernels_.dequantize(tile.panel, segment, layer_.format_ == WeightFormat::int4,
                                task.wide + (segment.begin - block.first) * panel_width);
        }
        tile.panel = reinterpret_cast<const char*>(task.wide);
    } else if (!is_quantized()) {
        tile.panel += block.first * (layer_.format_ == WeightFormat::float32 ? 4 : 2) * panel_width;
    }
    const TileFunction* tiles = kernels_.tiles[static_cast<int>(layer_.tile_format_)];
    for (int64_t row_block = task.first_block; row_block < task.end_block; ++row_block) {
        const int64_t row = first_row(row_block);
        const int64_t num_rows = first_row(row_block + 1) - row;
        tile.sums = task.sums + ((panel - task.first_panel) * task.num_rows + row - task.first_row) * panel_width;
        tile.x = call_.x + row * call_.x_stride + block.first;
        if (is_integer()) tile.rows = quantized(row_block);
        tiles[num_rows - 1](tile);
    }
}

void LinearRun::finish(const Task& task, int64_t panel) const {
    const int64_t width = layer_.gated_ ? panel_width / 2 : panel_width;
    LinearFinish finish;
    finish.sums = task.sums + (panel - task.first_panel) * task.num_rows * panel_width;
    finish.bias = nullptr;
    if (layer_.bias_begin_ >= 0) {
        const char* at = layer_.panels_.data() + panel * layer_.panel_stride_ + layer_.bias_begin_;
        finish.bias = reinterpret_cast<const float*>(at);
    }
    finish.num_rows = task.num_rows;
    finish.num_columns = std::min(width, layer_.num_outputs_ - panel * width);
    finish.out = call_.out + task.first_row * call_.out_stride + panel * width;
    finish.out_stride = call_.out_stride;
    finish.residual = nullptr;
    finish.residual_stride = call_.residual_stride;
    if (call_.residual != nullptr) {
        finish.residual = call_.residual + task.first_row * call_.residual_stride + panel * width;
    }
    finish.activation = call_.activation;
    finish.gated = layer_.gated_;
    kernels_.finish(finish);
}

}  // namespace paged_backend
