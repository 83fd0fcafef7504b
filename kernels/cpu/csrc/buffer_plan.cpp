#include "buffer_plan.h"

#include <algorithm>

#include "whole_numbers.h"

namespace paged_backend {

namespace {

constexpr int64_t line_floats = 16;
// Every slot begins on a new cache line: strides are multiples of line_floats.
int64_t slot_floats(int64_t stride, int64_t num_rows) { return stride * num_rows; }

struct Life {
    int begin = 0;  // node that writes it; -1 for an input
    int end = -1;   // last node that reads it; one past the last node for an output
};

std::vector<Life> lives_of(size_t num_buffers, const std::vector<BufferUse>& nodes, const std::vector<int>& inputs,
                           const std::vector<int>& outputs) {
    std::vector<Life> lives(num_buffers);
    for (size_t node = 0; node < nodes.size(); ++node) {
        const int number = static_cast<int>(node);
        for (const int buffer : nodes[node].reads) lives[static_cast<size_t>(buffer)].end = number;
        // What nobody reads is written all the same.
        for (const int buffer : nodes[node].writes) lives[static_cast<size_t>(buffer)] = {number, number};
    }
    for (const int buffer : inputs) lives[static_cast<size_t>(buffer)].begin = -1;
    for (const int buffer : outputs) lives[static_cast<size_t>(buffer)].end = static_cast<int>(nodes.size());
    return lives;
}

}  // namespace

int64_t row_stride(int64_t width) {
    const int64_t stride = round_up(width, line_floats);
    return stride % 512 == 0 ? stride + line_floats : stride;
}

BufferPlan::BufferPlan(const std::vector<BufferShape>& buffers, const std::vector<BufferUse>& nodes,
                       const std::vector<int>& inputs, const std::vector<int>& outputs) {
    std::vector<Life> lives = lives_of(buffers.size(), nodes, inputs, outputs);
    group_of_.resize(buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) group_of_[i] = static_cast<int>(i);
    groups_.resize(buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) groups_[i] = {buffers[i].rows, row_stride(buffers[i].width), -1, -1};

    // A written buffer joins the group of what it moves onto; the group lives on with it.
    for (size_t node = 0; node < nodes.size(); ++node) {
        std::vector<int> taken;
        for (const auto& [from, to] : nodes[node].moves) {
            const auto source = static_cast<size_t>(from), target = static_cast<size_t>(to);
            const bool is_free = lives[source].end == static_cast<int>(node) && buffers[source].rows == buffers[target].rows &&
                                 group_of_[target] == to &&
                                 std::find(taken.begin(), taken.end(), from) == taken.end();
            if (!is_free) continue;
            taken.push_back(from);
            const int group = group_of_[source];
            group_of_[target] = group;
            Group& joined = groups_[static_cast<size_t>(group)];
            joined.stride = std::max(joined.stride, groups_[target].stride);
        }
    }
    std::vector<Life> group_lives(buffers.size());
    for (size_t i = 0; i < buffers.size(); ++i) {
        Life& life = group_lives[static_cast<size_t>(group_of_[i])];
        if (group_of_[i] == static_cast<int>(i)) life = lives[i];  // a group is named by its first buffer
        life.end = std::max(life.end, lives[i].end);
    }
    output_strides_.resize(outputs.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
        Group& group = groups_[static_cast<size_t>(group_of_[static_cast<size_t>(outputs[i])])];
        group.output = static_cast<int>(i);
        output_strides_[i] = group.stride;
    }

    // In the order of their beginnings, each group takes the free slot that fits best.
    std::vector<int> order;
    for (size_t i = 0; i < buffers.size(); ++i) {
        if (group_of_[i] == static_cast<int>(i) && groups_[i].output < 0) order.push_back(static_cast<int>(i));
    }
    const auto life_of = [&](int group) { return group_lives[static_cast<size_t>(group)]; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return life_of(a).begin < life_of(b).begin; });
    std::vector<int> slot_ends;
    for (const int number : order) {
        Group& group = groups_[static_cast<size_t>(number)];
        const Life life = life_of(number);
        int best = -1;
        for (size_t i = 0; i < slots_.size(); ++i) {
            if (slots_[i].rows != group.rows || slot_ends[i] >= life.begin) continue;
            const auto misfit = [&](size_t slot) { return std::abs(slots_[slot].stride - group.stride); };
            if (best < 0 || misfit(i) < misfit(static_cast<size_t>(best))) best = static_cast<int>(i);
        }
        if (best < 0) {
            best = static_cast<int>(slots_.size());
            slots_.push_back({group.rows, 0});
            slot_ends.push_back(0);
        }
        Slot& slot = slots_[static_cast<size_t>(best)];
        slot.stride = std::max(slot.stride, group.stride);
        slot_ends[static_cast<size_t>(best)] = std::max(life.end, life.begin);
        group.slot = best;
    }
}

int64_t BufferPlan::num_floats(const int64_t (&num_rows)[num_row_kinds]) const {
    int64_t floats = 0;
    for (const Slot& slot : slots_) floats += slot_floats(slot.stride, num_rows[static_cast<int>(slot.rows)]);
    return floats;
}

void BufferPlan::place(const int64_t (&num_rows)[num_row_kinds], float* memory, const Rows* outputs,
                       Rows* buffers) const {
    for (size_t i = 0; i < group_of_.size(); ++i) {
        const Group& group = groups_[static_cast<size_t>(group_of_[i])];
        if (group.output >= 0) {
            buffers[i] = outputs[group.output];
            continue;
        }
        float* begin = memory;
        for (int slot = 0; slot < group.slot; ++slot) {
            const Slot& before = slots_[static_cast<size_t>(slot)];
            begin += slot_floats(before.stride, num_rows[static_cast<int>(before.rows)]);
        }
        buffers[i] = {begin, group.stride};
    }
}

}  // namespace paged_backend
