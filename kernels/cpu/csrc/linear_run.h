// One call of a packed linear layer, cut into tasks.
#pragma once

#include <atomic>
#include <vector>

#include "linear.h"

namespace paged_backend {

// Of a call of at most some hundred rows, which has been checked. Rows go in blocks of a tile's height, and those in
// groups that the caches hold; outputs go in panels. A cell is a group of rows times one panel, or some where not even
// a group's rows stay in a cache; it is also the most that a thread keeps sums for. A unit is one of the cell's blocks
// of rows. A task is any number of units, one after the other.
class LinearRun {
  public:
    LinearRun(const PackedLinear& layer, Runtime& runtime, const LinearCall& call);

    void run();

  private:
    // Some blocks of rows of one cell, and a thread's memory for them.
    struct Piece {
        int64_t first_panel, end_panel;
        int64_t first_block, end_block;
        int64_t first_row, num_rows;
        float* sums;  // [panels][rows][32]
        float* wide;  // weights as floats, for the float32 route of quantised ones
    };
    // Inputs that all rows of a piece use, from the caches, before the next ones.
    struct InputBlock {
        int64_t first, end;
        int64_t first_segment, end_segment;
    };

    void choose_cells();
    void choose_tasks();
    void take_scratch();
    bool is_quantized() const { return !layer_.segments_.empty(); }
    bool is_integer() const { return is_quantized() && layer_.route_ != LinearRoute::float32; }
    bool is_widened() const { return is_quantized() && layer_.route_ == LinearRoute::float32; }
    int64_t number_bytes() const;  // of x, as the tiles read it
    int64_t num_units() const { return num_groups_ * num_panel_batches_ * group_blocks_; }
    int64_t first_row(int64_t row_block) const;
    QuantizedRows quantized(int64_t row_block) const;
    InputBlock block_after(const InputBlock& block, int64_t num_inputs) const;

    void quantize_part(int64_t part) const;
    void wait_for_quantized() const;
    void run_units(int64_t first, int64_t end, int thread) const;
    void run_piece(const Piece& piece) const;
    void add_products(const Piece& piece, const InputBlock& block, int64_t panel) const;
    void finish(const Piece& piece, int64_t panel) const;

    const PackedLinear& layer_;
    Runtime& runtime_;
    const LinearCall& call_;
    const LinearKernels& kernels_;
    int64_t num_row_blocks_;
    int64_t inputs_at_once_;
    int64_t num_groups_ = 1;         // of blocks of rows
    int64_t group_blocks_ = 1;       // blocks of a group; some have one less
    int64_t panels_at_once_ = 1;     // of a cell
    int64_t num_panel_batches_ = 1;  // cells of a group
    int64_t num_quantize_parts_ = 0;
    mutable std::atomic<int64_t> num_quantized_{0};  // parts
    const int64_t* task_ends_ = nullptr;             // in units; the runtime's
    int64_t num_tasks_ = 1;
    char* const* scratch_ = nullptr;
    int64_t wide_begin_ = 0;    // bytes in each thread's scratch: after the sums
    int64_t rows_begin_ = 0;    // after those
    int64_t values_bytes_ = 0;  // of a block of quantised rows, without scales
    int64_t rows_bytes_ = 0;    // of a block of quantised rows
};

}  // namespace paged_backend
