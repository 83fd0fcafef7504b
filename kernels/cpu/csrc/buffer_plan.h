// Where a program's buffers lie: buffers whose lives do not touch share memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace paged_backend {

// What a buffer has a row for: each token of a step, or each row whose logits are wanted.
enum class RowsOf { tokens, logits };
constexpr int num_row_kinds = 2;

struct BufferShape {
    int64_t width;
    RowsOf rows;
};

// Which buffers a node of a program reads and writes, each written by one node only. moves: (read, written) pairs, the
// dearest first, where the written buffer may lie in the read one's place if nobody reads that later.
struct BufferUse {
    std::vector<int> reads;
    std::vector<int> writes;
    std::vector<std::pair<int, int>> moves;
};

class BufferPlan {
  public:
    BufferPlan() = default;

    // inputs: buffers that are filled before the first node; outputs: different buffers that are read after the last
    // one, none of them an input. Outputs lie in the caller's memory.
    BufferPlan(const std::vector<BufferShape>& buffers, const std::vector<BufferUse>& nodes,
               const std::vector<int>& inputs, const std::vector<int>& outputs);

    // Of the memory that `place` divides.
    int64_t num_floats(const int64_t (&num_rows)[num_row_kinds]) const;

    // Floats between rows that output number i needs, at least.
    int64_t output_stride(int i) const { return output_strides_[static_cast<size_t>(i)]; }

    struct Rows {
        float* data;
        int64_t stride;  // in floats
    };

    // Writes each buffer's place.
    void place(const int64_t (&num_rows)[num_row_kinds], float* memory, const Rows* outputs, Rows* buffers) const;

  private:
    // Buffers that moved into each other's places are one group.
    struct Group {
        RowsOf rows = RowsOf::tokens;
        int64_t stride = 0;
        int output = -1;  // or
        int slot = -1;
    };
    struct Slot {
        RowsOf rows;
        int64_t stride;  // of its widest group
    };

    std::vector<int> group_of_;  // by buffer
    std::vector<Group> groups_;
    std::vector<Slot> slots_;
    std::vector<int64_t> output_strides_;
};

// Floats from row to row: a multiple of the cache line, and none of the distance at which lines share their place in
// the first cache.
int64_t row_stride(int64_t width);

}  // namespace paged_backend
