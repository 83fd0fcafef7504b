// One call of a packed linear layer, cut into tasks.
#pragma once

#include "linear.h"

namespace paged_backend {

// Of a call of at most some hundred rows, which has been checked. Rows go in blocks of a tile's height, outputs in
// panels; a task is some panels for some blocks of rows.
class LinearRun {
  public:
    LinearRun(const PackedLinear& layer, Runtime& runtime, const LinearCall& call);

    void run();

  private:
    // Panels and rows of a task.
    struct Task {
        int64_t first_panel, end_panel;
        int64_t first_block, end_block;
        int64_t first_row, num_rows;
        float* sums;  // [panels][rows][32]
        float* wide;  // weights as floats, for the float32 route of quantised ones
    };
    // Inputs that all rows of a task use, from the caches, before the next ones.
    struct InputBlock {
        int64_t first, end;
        int64_t first_segment, end_segment;
    };

    void choose_tasks();
    void take_scratch();
    bool is_quantized() const { return !layer_.segments_.empty(); }
    bool is_integer() const { return is_quantized() && layer_.route_ != LinearRoute::float32; }
    bool is_widened() const { return is_quantized() && layer_.route_ == LinearRoute::float32; }
    int64_t first_row(int64_t row_block) const;
    int64_t sums_floats() const;  // of a task
    QuantizedRows quantized(int64_t row_block) const;
    int64_t inputs_at_once(const Task& task) const;
    InputBlock block_after(const InputBlock& block, int64_t num_inputs) const;

    void quantize_rows(int64_t row_block) const;
    void run_task(int64_t index, int thread) const;
    void add_products(const Task& task, const InputBlock& block, int64_t panel) const;
    void finish(const Task& task, int64_t panel) const;

    const PackedLinear& layer_;
    Runtime& runtime_;
    const LinearCall& call_;
    const LinearKernels& kernels_;
    int64_t num_row_blocks_;
    int64_t num_row_tasks_ = 1;
    int64_t num_panel_tasks_ = 1;
    char* const* scratch_ = nullptr;
    int64_t wide_begin_ = 0;    // bytes in each thread's scratch: after the sums
    int64_t rows_begin_ = 0;    // after those
    int64_t values_bytes_ = 0;  // of a block of quantised rows, without scales
    int64_t rows_bytes_ = 0;    // of a block of quantised rows
};

}  // namespace paged_backend
