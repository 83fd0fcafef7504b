#include "linear_run.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "runtime.h"
#include "thread_team.h"
#include "whole_numbers.h"

namespace paged_backend {

namespace {

constexpr int64_t max_sums = 64 << 10;          // floats of a cell's sums, where a cell has several panels
constexpr int64_t rows_cache_bytes = 384 << 10;  // of x: what the second nearest cache keeps beside weights and sums
constexpr int64_t float_block_bytes = 64 << 10;  // of a panel's weights: what the second nearest cache keeps
constexpr int64_t max_float_inputs = 512;        // of an input block: twelve rows of x stay in the nearest cache
constexpr int64_t integer_block_bytes = 16 << 10;  // of a panel's weights: half of the nearest cache
constexpr int64_t widened_inputs = 256;
constexpr double least_task_microseconds = 1.0;  // what handing out a task costs must not count
constexpr int64_t parallel_numbers = 4096;       // of x: from here on its rows are quantised in parallel

// The first of part `index` of `num_parts` parts of `size` that are as equal as they can be.
int64_t part_begin(int64_t size, int64_t num_parts, int64_t index) { return size * index / num_parts; }

// The tiles' loops fetch ahead what lies behind their place: nobody else fetches where they begin.
void prefetch_begin(const char* panel) {
    for (int64_t line = 0; line < 2048; line += 64) __builtin_prefetch(panel + line);
}

// Ends of tasks: each takes its share of what the ones before have left, so that the first are long, and the last ones
// end together.
void find_ends_of_tasks(int64_t num_units, int64_t least, int64_t num_threads, std::vector<int64_t>& ends) {
    ends.clear();
    for (int64_t begin = 0; begin < num_units; begin = ends.back()) {
        const int64_t share = (num_units - begin) / (2 * num_threads);
        ends.push_back(std::min(num_units, begin + std::max(least, share)));
    }
}

}  // namespace

LinearRun::LinearRun(const PackedLinear& layer, Runtime& runtime, const LinearCall& call)
    : layer_(layer),
      runtime_(runtime),
      call_(call),
      kernels_(runtime.kernels().linear),
      num_row_blocks_(divide_up(call.num_rows, kernels_.max_rows)) {
    choose_cells();
    choose_tasks();
    take_scratch();
}

// Who multiplies waits for all rows to be quantised; the tasks that do it come first, so that others have begun them.
void LinearRun::run() {
    if (is_integer() && num_quantize_parts_ == 1) {
        prefetch_begin(layer_.panels_.data());
        quantize_part(0);
    }
    const int64_t num_before = num_quantize_parts_ == 1 ? 0 : num_quantize_parts_;
    runtime_.team().run(num_before + num_tasks_, [this, num_before](int64_t task, int thread) {
        if (task < num_before) return quantize_part(task);
        const int64_t index = task - num_before;
        run_units(index == 0 ? 0 : task_ends_[index - 1], task_ends_[index], thread);
    });
}

int64_t LinearRun::number_bytes() const {
    if (!is_integer()) return sizeof(float);
    return layer_.route_ == LinearRoute::int16 ? 2 : 1;
}

void LinearRun::choose_cells() {
    const int64_t num_inputs = layer_.num_inputs_;
    const int64_t input_bytes = std::max<int64_t>(1, layer_.panel_stride_ / num_inputs);
    if (is_widened()) {
        inputs_at_once_ = widened_inputs;
    } else if (num_row_blocks_ == 1) {
        inputs_at_once_ = num_inputs;  // nobody would use them again
    } else if (is_integer()) {
        inputs_at_once_ = integer_block_bytes / input_bytes;
    } else {
        inputs_at_once_ = std::min(float_block_bytes / input_bytes, max_float_inputs);
    }
    const int64_t block_bytes = kernels_.max_rows * number_bytes() * std::min(num_inputs, inputs_at_once_);
    num_groups_ = divide_up(num_row_blocks_, std::max<int64_t>(1, rows_cache_bytes / block_bytes));
    group_blocks_ = divide_up(num_row_blocks_, num_groups_);
    const int64_t group_rows = group_blocks_ * kernels_.max_rows;
    if (group_blocks_ > 1 && group_rows * num_inputs * number_bytes() > rows_cache_bytes) {
        const int64_t num_threads = runtime_.team().size();
        const int64_t most = std::max<int64_t>(1, max_sums / (group_rows * panel_width));
        panels_at_once_ = std::min(most, divide_up(layer_.num_panels_, num_threads));
    }
    num_panel_batches_ = divide_up(layer_.num_panels_, panels_at_once_);
}

void LinearRun::choose_tasks() {
    const int64_t num_threads = runtime_.team().size();
    const double bytes = static_cast<double>(layer_.num_panels_ * layer_.panel_stride_);
    const double products = static_cast<double>(call_.num_rows * layer_.num_panels_ * panel_width * layer_.num_inputs_);
    const double products_a_microsecond = is_integer() ? 200e3 / static_cast<double>(number_bytes()) : 50e3;
    const double microseconds = std::max(bytes / 25e3, products / products_a_microsecond);  // on one thread, roughly
    const double wanted = microseconds / least_task_microseconds;
    int64_t least = num_units();
    if (num_threads > 1 && wanted >= 2) {
        least = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(num_units()) / wanted));
    }
    std::vector<int64_t>& ends = runtime_.task_ends();
    find_ends_of_tasks(num_units(), least, num_threads, ends);
    task_ends_ = ends.data();
    num_tasks_ = static_cast<int64_t>(ends.size());
    if (!is_integer()) return;
    if (num_row_blocks_ > 1) {
        num_quantize_parts_ = num_row_blocks_;
    } else {
        const bool is_much = call_.num_rows * layer_.num_inputs_ >= parallel_numbers;
        const int64_t num_segments = static_cast<int64_t>(layer_.segments_.size());
        num_quantize_parts_ = is_much ? std::min(num_threads, num_segments) : 1;
    }
}

void LinearRun::take_scratch() {
    const int64_t num_threads = runtime_.team().size();
    const int64_t num_segments = static_cast<int64_t>(layer_.segments_.size());
    constexpr int64_t float_bytes = sizeof(float);
    const int64_t sums_bytes = group_blocks_ * kernels_.max_rows * panels_at_once_ * panel_width * float_bytes;
    values_bytes_ = round_up(layer_.padded_inputs_ * kernels_.max_rows * number_bytes(), 64);
    rows_bytes_ = round_up(values_bytes_ + 2 * float_bytes * kernels_.max_rows * num_segments, 64);
    wide_begin_ = round_up(sums_bytes, 64);
    rows_begin_ = wide_begin_ + (is_widened() ? widened_inputs * panel_width * float_bytes : 0);
    const int64_t blocks_a_thread = is_integer() ? divide_up(num_row_blocks_, num_threads) : 0;
    scratch_ = runtime_.scratch(rows_begin_ + blocks_a_thread * rows_bytes_);
}

int64_t LinearRun::first_row(int64_t row_block) const { return part_begin(call_.num_rows, num_row_blocks_, row_block); }

// Blocks of quantised rows are spread over all threads' scratch.
QuantizedRows LinearRun::quantized(int64_t row_block) const {
    const int64_t num_threads = runtime_.team().size();
    char* begin = scratch_[row_block % num_threads] + rows_begin_ + row_block / num_threads * rows_bytes_;
    float* scales = reinterpret_cast<float*>(begin + values_bytes_);
    const int64_t num_scales = static_cast<int64_t>(layer_.segments_.size()) * kernels_.max_rows;
    return {begin, scales, reinterpret_cast<int32_t*>(scales + num_scales)};
}

// A block of rows, or some segments of the only one: so that no two threads write to the same lines of memory.
void LinearRun::quantize_part(int64_t part) const {
    const bool is_only = num_row_blocks_ == 1;
    const int64_t block = is_only ? 0 : part;
    const int64_t num_segments = static_cast<int64_t>(layer_.segments_.size());
    LinearQuantize work;
    work.x = call_.x + first_row(block) * call_.x_stride;
    work.x_stride = call_.x_stride;
    work.num_rows = first_row(block + 1) - first_row(block);
    work.segments = layer_.segments_.data();
    work.first_segment = is_only ? part_begin(num_segments, num_quantize_parts_, part) : 0;
    work.end_segment = is_only ? part_begin(num_segments, num_quantize_parts_, part + 1) : num_segments;
    work.offset = layer_.format_ == WeightFormat::int4 ? 8 : 128;
    work.to = quantized(block);
    (layer_.route_ == LinearRoute::int16 ? kernels_.quantize_int16 : kernels_.quantize_int8)(work);
    num_quantized_.fetch_add(1, std::memory_order_release);
}

void LinearRun::wait_for_quantized() const {
    constexpr int looks_before_yield = 1000;  // then who quantises may have been put aside
    for (int look = 0; num_quantized_.load(std::memory_order_acquire) < num_quantize_parts_; ++look) {
        if (look < looks_before_yield) {
            pause_briefly();
        } else {
            std::this_thread::yield();
        }
    }
}

void LinearRun::run_units(int64_t first, int64_t end, int thread) const {
    prefetch_begin(layer_.panels_.data() +
                   first / group_blocks_ % num_panel_batches_ * panels_at_once_ * layer_.panel_stride_);
    wait_for_quantized();
    Piece piece;
    piece.sums = reinterpret_cast<float*>(scratch_[thread]);
    piece.wide = reinterpret_cast<float*>(scratch_[thread] + wide_begin_);
    for (int64_t unit = first; unit < end;) {
        const int64_t cell = unit / group_blocks_, begin = unit % group_blocks_;
        const int64_t num_blocks = std::min(group_blocks_ - begin, end - unit);
        const int64_t group = cell / num_panel_batches_, batch = cell % num_panel_batches_;
        const int64_t first_block = part_begin(num_row_blocks_, num_groups_, group);
        const int64_t end_block = part_begin(num_row_blocks_, num_groups_, group + 1);
        piece.first_panel = batch * panels_at_once_;
        piece.end_panel = std::min(piece.first_panel + panels_at_once_, layer_.num_panels_);
        piece.first_block = first_block + begin;
        piece.end_block = std::min(piece.first_block + num_blocks, end_block);
        if (piece.first_block < piece.end_block) run_piece(piece);
        unit += num_blocks;
    }
}

void LinearRun::run_piece(const Piece& given) const {
    Piece piece = given;
    piece.first_row = first_row(piece.first_block);
    piece.num_rows = first_row(piece.end_block) - piece.first_row;
    const int64_t num_panels = piece.end_panel - piece.first_panel;
    std::memset(piece.sums, 0, static_cast<size_t>(num_panels * piece.num_rows * panel_width) * sizeof(float));
    for (InputBlock block = block_after({0, 0, 0, 0}, inputs_at_once_); block.first < layer_.num_inputs_;
         block = block_after(block, inputs_at_once_)) {
        for (int64_t panel = piece.first_panel; panel < piece.end_panel; ++panel) add_products(piece, block, panel);
    }
    for (int64_t panel = piece.first_panel; panel < piece.end_panel; ++panel) finish(piece, panel);
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

void LinearRun::add_products(const Piece& piece, const InputBlock& block, int64_t panel) const {
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
                                piece.wide + (segment.begin - block.first) * panel_width);
        }
        tile.panel = reinterpret_cast<const char*>(piece.wide);
    } else if (!is_quantized()) {
        tile.panel += block.first * (layer_.format_ == WeightFormat::float32 ? 4 : 2) * panel_width;
    }
    const TileFunction* tiles = kernels_.tiles[static_cast<int>(layer_.tile_format_)];
    for (int64_t row_block = piece.first_block; row_block < piece.end_block; ++row_block) {
        const int64_t row = first_row(row_block);
        const int64_t num_rows = first_row(row_block + 1) - row;
        tile.sums = piece.sums + ((panel - piece.first_panel) * piece.num_rows + row - piece.first_row) * panel_width;
        tile.x = call_.x + row * call_.x_stride + block.first;
        if (is_integer()) tile.rows = quantized(row_block);
        tiles[num_rows - 1](tile);
    }
}

void LinearRun::finish(const Piece& piece, int64_t panel) const {
    const int64_t width = layer_.gated_ ? panel_width / 2 : panel_width;
    LinearFinish finish;
    finish.sums = piece.sums + (panel - piece.first_panel) * piece.num_rows * panel_width;
    finish.bias = nullptr;
    if (layer_.bias_begin_ >= 0) {
        const char* at = layer_.panels_.data() + panel * layer_.panel_stride_ + layer_.bias_begin_;
        finish.bias = reinterpret_cast<const float*>(at);
    }
    finish.num_rows = piece.num_rows;
    finish.num_columns = std::min(width, layer_.num_outputs_ - panel * width);
    finish.out = call_.out + piece.first_row * call_.out_stride + panel * width;
    finish.out_stride = call_.out_stride;
    finish.residual = nullptr;
    finish.residual_stride = call_.residual_stride;
    if (call_.residual != nullptr) {
        finish.residual = call_.residual + piece.first_row * call_.residual_stride + panel * width;
    }
    finish.activation = call_.activation;
    finish.gated = layer_.gated_;
    kernels_.finish(finish);
}

}  // namespace paged_backend
