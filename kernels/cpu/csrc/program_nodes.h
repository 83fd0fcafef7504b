// What a program is made of: one node for each recorded operation.
#pragma once

#include "program.h"

namespace paged_backend {

struct EmbeddingNode : Program::Node {
    EmbeddingTable table;
    Indices indices;
    int add;
    int out;

    void run(const Program::Step& step) override;
};

struct NormNode : Program::Node {
    bool centred;
    int x;
    int out;
    RowsOf rows;
    NormArgs args = {};

    void run(const Program::Step& step) override;
};

struct LinearNode : Program::Node {
    const PackedLinear* weight;
    int x;
    int residual;
    int out;
    RowsOf rows;
    LinearCall call = {};

    void run(const Program::Step& step) override;
};

struct QkvToCacheNode : Program::Node {
    int qkv;
    int query;
    int64_t group;
    QkvToCacheArgs args = {};

    void run(const Program::Step& step) override;
};

struct PagedAttentionNode : Program::Node {
    int query;
    int out;
    int64_t group;
    PagedAttention* operation;
    PagedAttentionArgs args = {};

    void run(const Program::Step& step) override;
};

// Whether two layers of a group can share an attention's plan: all but their pointers and scales.
bool can_share(const PagedAttentionArgs& a, const PagedAttentionArgs& b);
// Writes what the step says of a group's layers.
void set_arrays(const StepArrays& arrays, int64_t group, PagedAttentionArgs& args);

struct SelectRowsNode : Program::Node {
    int x;
    int out;
    int64_t width;

    void run(const Program::Step& step) override;
};

struct SoftCapNode : Program::Node {
    int x;
    int out;
    int64_t width;
    RowsOf rows;
    float cap;

    void run(const Program::Step& step) override;
};

}  // namespace paged_backend
