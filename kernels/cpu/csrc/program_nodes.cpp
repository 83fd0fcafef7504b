#include "program_nodes.h"

#include "runtime.h"

namespace paged_backend {

using Rows = Program::Rows;
using Step = Program::Step;

void EmbeddingNode::run(const Step& step) {
    const Rows& to = step.buffers[out];
    EmbeddingArgs args = {};
    args.table = table.data;
    args.dtype = table.dtype;
    args.indices = indices == Indices::token_ids ? step.arrays.token_ids : step.arrays.positions;
    if (add >= 0) {
        args.add = step.buffers[add].data;
        args.add_stride = step.buffers[add].stride;
    }
    args.out = to.data;
    args.out_stride = to.stride;
    args.num_rows = step.arrays.num_rows;
    args.width = table.width;
    embedding(step.runtime, args);
}

void NormNode::run(const Step& step) {
    args.x = step.buffers[x].data;
    args.x_stride = step.buffers[x].stride;
    args.out = step.buffers[out].data;
    args.out_stride = step.buffers[out].stride;
    args.num_rows = step.num_rows[static_cast<int>(rows)];
    if (centred) {
        layer_norm(step.runtime, args);
    } else {
        rms_norm(step.runtime, args);
    }
}

void LinearNode::run(const Step& step) {
    call.x = step.buffers[x].data;
    call.x_stride = step.buffers[x].stride;
    call.num_rows = step.num_rows[static_cast<int>(rows)];
    call.out = step.buffers[out].data;
    call.out_stride = step.buffers[out].stride;
    if (residual >= 0) {
        call.residual = step.buffers[residual].data;
        call.residual_stride = step.buffers[residual].stride;
    }
    weight->run(step.runtime, call);
}

void QkvToCacheNode::run(const Step& step) {
    args.qkv = step.buffers[qkv].data;
    args.qkv_stride = step.buffers[qkv].stride;
    args.query = step.buffers[query].data;
    args.query_stride = step.buffers[query].stride;
    args.num_rows = step.arrays.num_rows;
    args.slots = step.arrays.slots + group * step.arrays.num_rows;
    args.positions = step.arrays.positions;
    qkv_to_cache(step.runtime, args);
}

bool can_share(const PagedAttentionArgs& a, const PagedAttentionArgs& b) {
    return a.cache.dtype == b.cache.dtype && a.cache.num_kv_heads == b.cache.num_kv_heads &&
           a.cache.block_size == b.cache.block_size && a.cache.head_size == b.cache.head_size &&
           a.num_blocks == b.num_blocks && a.num_query_heads == b.num_query_heads &&
           a.sliding_window == b.sliding_window && (a.soft_cap != 0.0f) == (b.soft_cap != 0.0f);
}

void set_arrays(const StepArrays& arrays, int64_t group, PagedAttentionArgs& args) {
    args.block_tables = arrays.block_tables + group * arrays.num_sequences * arrays.max_blocks;
    args.query_start = arrays.query_start;
    args.context_lens = arrays.context_lens;
    args.num_rows = arrays.num_rows;
    args.num_sequences = arrays.num_sequences;
    args.max_blocks = arrays.max_blocks;
}

void PagedAttentionNode::run(const Step& step) {
    set_arrays(step.arrays, group, args);
    args.query = step.buffers[query].data;
    args.query_stride = step.buffers[query].stride;
    args.out = step.buffers[out].data;
    args.out_stride = step.buffers[out].stride;
    operation->run(step.runtime, args);
}

void SelectRowsNode::run(const Step& step) {
    const Rows &from = step.buffers[x], &to = step.buffers[out];
    const int64_t num_rows = step.num_rows[static_cast<int>(RowsOf::logits)];
    const int64_t* indices = step.arrays.has_logits_rows ? step.arrays.logits_rows : nullptr;
    select_rows(step.runtime, {from.data, from.stride, indices, to.data, to.stride, num_rows, width});
}

void SoftCapNode::run(const Step& step) {
    const Rows &from = step.buffers[x], &to = step.buffers[out];
    const int64_t num_rows = step.num_rows[static_cast<int>(rows)];
    soft_cap(step.runtime, {from.data, from.stride, to.data, to.stride, num_rows, width, cap});
}

}  // namespace paged_backend
