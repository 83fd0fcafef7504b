#include "program.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <mutex>
#include <stdexcept>

#include "program_nodes.h"
#include "runtime.h"

namespace paged_backend {

namespace {

constexpr int64_t unbounded = std::numeric_limits<int64_t>::max();
constexpr int64_t max_width = int64_t{1} << 31;
constexpr int64_t max_groups = 1 << 16;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t bound) {
    if (bound == unbounded || count == 0) return;
    if (indices == nullptr) refuse(std::string(name) + " must be there: the program uses them.");
    const auto [low, high] = std::minmax_element(indices, indices + count);
    if (*low < 0 || *high >= bound) {
        refuse(std::string(name) + " must be in 0.." + std::to_string(bound - 1) + ", got " + std::to_string(*low) +
               ".." + std::to_string(*high) + ".");
    }
}

}  // namespace

struct Program::AttentionPlan {
    int64_t group;
    PagedAttentionArgs args = {};
    PagedAttention operation;
};

Program::Program(Runtime& runtime) : runtime_(runtime), bounds_{unbounded, unbounded, {}} {}

Program::~Program() = default;

const BufferShape& Program::shape_of(int buffer, const char* name) const {
    if (buffer < 0 || buffer >= static_cast<int>(buffers_.size())) {
        refuse(std::string(name) + " must be a buffer of this program.");
    }
    return buffers_[static_cast<size_t>(buffer)];
}

void Program::require_like(int buffer, const char* name, int64_t width, RowsOf rows) const {
    const BufferShape& shape = shape_of(buffer, name);
    if (shape.width != width) {
        refuse(std::string(name) + " must be [T, " + std::to_string(width) + "], got a width of " +
               std::to_string(shape.width) + ".");
    }
    if (shape.rows != rows) {
        refuse(std::string(name) + " must have a row for each " +
               (rows == RowsOf::tokens ? "token, before select_rows." : "row of the logits, after select_rows."));
    }
}

void Program::require_recording() const {
    if (is_finished_) refuse("the program is finished: nothing can be recorded any more.");
}

// The program uses this group's slots and tables.
void Program::require_group(int64_t group) {
    if (group < 0 || group >= max_groups) {
        refuse("group must be in 0.." + std::to_string(max_groups - 1) + ", got " + std::to_string(group) + ".");
    }
    const auto count = static_cast<size_t>(group) + 1;
    if (bounds_.slots.size() < count) bounds_.slots.resize(count, unbounded);
}

int Program::add_buffer(int64_t width, RowsOf rows) {
    if (width < 0 || width > max_width) refuse("x must have a width of 0 or more, got " + std::to_string(width) + ".");
    buffers_.push_back({width, rows});
    return static_cast<int>(buffers_.size()) - 1;
}

void Program::add(std::unique_ptr<Node> node, const char* name) {
    if (node->name.empty()) node->name = name;
    nodes_.push_back(std::move(node));
}

int Program::input(int64_t width) {
    require_recording();
    const int buffer = add_buffer(width, RowsOf::tokens);
    inputs_.push_back(buffer);
    return buffer;
}

int Program::embedding(const EmbeddingTable& table, Indices indices, int add_to) {
    require_recording();
    if (add_to != none) require_like(add_to, "add", table.width, RowsOf::tokens);
    auto node = std::make_unique<EmbeddingNode>();
    node->table = table;
    node->indices = indices;
    node->add = add_to;
    const int out = node->out = add_buffer(table.width, RowsOf::tokens);
    node->use.writes = {out};
    if (add_to != none) {
        node->use.reads = {add_to};
        node->use.moves = {{add_to, out}};
    }
    int64_t& bound = indices == Indices::token_ids ? bounds_.token_ids : bounds_.positions;
    bound = std::min(bound, table.num_indices);
    add(std::move(node), "embedding");
    return out;
}

int Program::rms_norm(int x, const float* weight, int64_t size, float eps) {
    return add_norm(false, x, weight, nullptr, size, eps);
}

int Program::layer_norm(int x, const float* weight, const float* bias, int64_t size, float eps) {
    return add_norm(true, x, weight, bias, size, eps);
}

int Program::add_norm(bool centred, int x, const float* weight, const float* bias, int64_t size, float eps) {
    require_recording();
    const BufferShape shape = shape_of(x, "x");
    if (shape.width != size) refuse("weight must be [" + std::to_string(shape.width) + "], got [" + std::to_string(size) + "].");
    auto node = std::make_unique<NormNode>();
    node->centred = centred;
    node->x = x;
    node->rows = shape.rows;
    node->args.weight = weight;
    node->args.bias = bias;
    node->args.width = shape.width;
    node->args.eps = eps;
    const int out = node->out = add_buffer(shape.width, shape.rows);
    node->use.reads = {x};
    node->use.writes = {out};
    node->use.moves = {{x, out}};
    add(std::move(node), centred ? "layer_norm" : "rms_norm");
    return out;
}

int Program::linear(int x, const PackedLinear& weight, Activation activation, int residual) {
    require_recording();
    const BufferShape shape = shape_of(x, "x");
    require_like(x, "x", weight.num_inputs(), shape.rows);
    if (residual != none) {
        if (weight.is_gated()) refuse("residual cannot be added in a gated layer; leave it out.");
        require_like(residual, "residual", weight.num_outputs(), shape.rows);
    }
    auto node = std::make_unique<LinearNode>();
    node->weight = &weight;
    node->x = x;
    node->residual = residual;
    node->rows = shape.rows;
    node->call.activation = activation;
    const int out = node->out = add_buffer(weight.num_outputs(), shape.rows);
    node->use.reads = {x};
    node->use.writes = {out};
    if (residual != none) {
        node->use.reads.push_back(residual);
        if (residual != x) node->use.moves = {{residual, out}};
    }
    node->name = "linear " + std::to_string(weight.num_inputs()) + " -> " + std::to_string(weight.num_outputs()) +
                 (weight.is_gated() ? " gated" : "");
    add(std::move(node), "linear");
    return out;
}

int Program::qkv_to_cache(int qkv, const CacheTables& cache, int64_t num_heads, const RotaryTables& rotary,
                          const HeadNorms& norms) {
    require_recording();
    const CacheLayout& layout = cache.layout;
    if (layout.head_size > max_head_size) {
        refuse("head_size must be at most " + std::to_string(max_head_size) + ", got " +
               std::to_string(layout.head_size) + ".");
    }
    require_like(qkv, "qkv", (num_heads + 2 * layout.num_kv_heads) * layout.head_size, RowsOf::tokens);
    if (rotary.cos != nullptr && (rotary.num_rotated % 2 != 0 || rotary.num_rotated > layout.head_size)) {
        refuse("cos must have an even width of at most the head size.");
    }
    require_group(cache.group);
    auto node = std::make_unique<QkvToCacheNode>();
    node->qkv = qkv;
    node->group = cache.group;
    QkvToCacheArgs& args = node->args;
    args.num_heads = num_heads;
    args.cos = rotary.cos;
    args.sin = rotary.sin;
    args.num_rotated = rotary.num_rotated;
    args.query_norm = norms.query;
    args.key_norm = norms.key;
    args.norm_eps = norms.eps;
    args.cache = layout;
    args.keys = cache.keys;
    args.values = cache.values;
    args.key_block_stride = cache.key_block_stride;
    args.value_block_stride = cache.value_block_stride;
    const int out = node->query = add_buffer(num_heads * layout.head_size, RowsOf::tokens);
    node->use.reads = {qkv};
    node->use.writes = {out};
    node->use.moves = {{qkv, out}};
    int64_t& bound = bounds_.slots[static_cast<size_t>(cache.group)];
    bound = std::min(bound, cache.num_blocks * layout.block_size);
    if (rotary.cos != nullptr) bounds_.positions = std::min(bounds_.positions, rotary.num_positions);
    add(std::move(node), "qkv_to_cache");
    return out;
}

int Program::paged_attention(int query, const CacheTables& cache, float scale, int64_t sliding_window,
                             float soft_cap) {
    require_recording();
    const BufferShape shape = shape_of(query, "query");
    if (shape.width % cache.layout.head_size != 0) refuse("query must be [T, Hq * head_size] for this cache.");
    require_like(query, "query", shape.width, RowsOf::tokens);
    auto node = std::make_unique<PagedAttentionNode>();
    node->query = query;
    node->group = cache.group;
    PagedAttentionArgs& args = node->args;
    args.keys = cache.keys;
    args.values = cache.values;
    args.key_block_stride = cache.key_block_stride;
    args.value_block_stride = cache.value_block_stride;
    args.num_blocks = cache.num_blocks;
    args.cache = cache.layout;
    args.num_query_heads = shape.width / cache.layout.head_size;
    args.sliding_window = sliding_window;
    args.scale = scale;
    args.soft_cap = soft_cap;
    AttentionPlan* plan = nullptr;
    for (const auto& other : attention_plans_) {
        if (other->group == cache.group && can_share(other->args, args)) plan = other.get();
    }
    if (plan == nullptr) {
        auto added = std::make_unique<AttentionPlan>();
        added->group = cache.group;
        added->args = args;
        // Sizes are looked at now, with a step of no tokens.
        const int32_t zero = 0;
        StepArrays no_tokens;
        no_tokens.query_start = &zero;
        set_arrays(no_tokens, 0, args);
        added->operation.plan(args, runtime_.team().size());
        require_group(cache.group);
        plan = added.get();
        attention_plans_.push_back(std::move(added));
    }
    node->operation = &plan->operation;
    const int out = node->out = add_buffer(shape.width, RowsOf::tokens);
    node->use.reads = {query};
    node->use.writes = {out};
    node->use.moves = {{query, out}};
    add(std::move(node), "paged_attention");
    return out;
}

int Program::select_rows(int x) {
    require_recording();
    const BufferShape shape = shape_of(x, "x");
    require_like(x, "x", shape.width, RowsOf::tokens);
    auto node = std::make_unique<SelectRowsNode>();
    node->x = x;
    node->width = shape.width;
    const int out = node->out = add_buffer(shape.width, RowsOf::logits);
    node->use.reads = {x};
    node->use.writes = {out};
    selects_rows_ = true;
    add(std::move(node), "select_rows");
    return out;
}

int Program::soft_cap(int x, float cap) {
    require_recording();
    const BufferShape shape = shape_of(x, "x");
    auto node = std::make_unique<SoftCapNode>();
    node->x = x;
    node->width = shape.width;
    node->rows = shape.rows;
    node->cap = cap;
    const int out = node->out = add_buffer(shape.width, shape.rows);
    node->use.reads = {x};
    node->use.writes = {out};
    node->use.moves = {{x, out}};
    add(std::move(node), "soft_cap");
    return out;
}

void Program::finish(const std::vector<int>& outputs) {
    require_recording();
    for (size_t i = 0; i < outputs.size(); ++i) {
        shape_of(outputs[i], "outputs");
        const auto holds = [&](const std::vector<int>& list, size_t count) {
            return std::find(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(count), outputs[i]) !=
                   list.begin() + static_cast<std::ptrdiff_t>(count);
        };
        if (holds(outputs, i)) refuse("outputs must be different buffers.");
        if (holds(inputs_, inputs_.size())) refuse("outputs must be computed, not inputs.");
    }
    std::vector<BufferUse> uses;
    for (const auto& node : nodes_) uses.push_back(node->use);
    plan_ = BufferPlan(buffers_, uses, inputs_, outputs);
    outputs_ = outputs;
    places_.resize(buffers_.size());
    is_finished_ = true;
}

int64_t Program::output_stride(int index) const {
    if (!is_finished_ || index < 0 || index >= static_cast<int>(outputs_.size())) {
        refuse("index must be of an output of a finished program.");
    }
    return plan_.output_stride(index);
}

void Program::check(const StepArrays& arrays, const std::vector<Rows>& inputs, const std::vector<Rows>& outputs) const {
    if (!is_finished_) refuse("the program must be finished before it is run.");
    if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size()) {
        refuse("inputs and outputs must be as many as the program has.");
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
        if (outputs[i].stride < output_stride(static_cast<int>(i))) refuse("outputs must have the program's stride.");
    }
    const int64_t num_outputs = arrays.has_logits_rows ? arrays.num_logits_rows : arrays.num_rows;
    if (arrays.num_rows < 0 || arrays.num_sequences < 0 || num_outputs < 0) refuse("a step must not have less than no rows.");
    check_indices("token_ids", arrays.token_ids, arrays.num_rows, bounds_.token_ids);
    check_indices("positions", arrays.positions, arrays.num_rows, bounds_.positions);
    const auto num_groups = static_cast<int64_t>(bounds_.slots.size());
    if (arrays.num_rows > 0 && arrays.num_groups < num_groups) {
        refuse("slot_mapping and block_tables must be those of " + std::to_string(num_groups) + " groups, got " +
               std::to_string(arrays.num_groups) + ": a cache's group is one of them.");
    }
    for (int64_t group = 0; group < num_groups; ++group) {
        const int64_t* slots = arrays.slots == nullptr ? nullptr : arrays.slots + group * arrays.num_rows;
        check_indices("slot_mapping", slots, arrays.num_rows, bounds_.slots[static_cast<size_t>(group)]);
    }
    if (selects_rows_ && arrays.has_logits_rows) {
        check_indices("logits_rows", arrays.logits_rows, arrays.num_logits_rows, arrays.num_rows);
    }
}

std::map<std::string, double> Program::seconds() {
    const std::lock_guard<std::mutex> turn(runtime_.turn());
    return seconds_;
}

void Program::run(const StepArrays& arrays, const std::vector<Rows>& inputs, const std::vector<Rows>& outputs) {
    using Clock = std::chrono::steady_clock;
    const std::lock_guard<std::mutex> turn(runtime_.turn());
    auto begin = timed ? Clock::now() : Clock::time_point();
    const auto note = [&](const std::string& name) {
        if (!timed) return;
        const auto now = Clock::now();
        seconds_[name] += std::chrono::duration<double>(now - begin).count();
        begin = now;
    };
    // Members wake up while the step is being planned.
    runtime_.team().rouse();
    check(arrays, inputs, outputs);
    for (const auto& plan : attention_plans_) {
        if (arrays.query_start == nullptr) refuse("query_start must be there: the program uses it.");
        set_arrays(arrays, plan->group, plan->args);
        plan->operation.plan(plan->args, runtime_.team().size());
    }
    Step step = {runtime_, arrays, places_.data(), {arrays.num_rows, arrays.num_rows}};
    if (arrays.has_logits_rows) step.num_rows[static_cast<int>(RowsOf::logits)] = arrays.num_logits_rows;
    const auto num_bytes = plan_.num_floats(step.num_rows) * static_cast<int64_t>(sizeof(float));
    if (num_bytes > memory_.size()) {
        memory_ = AlignedMemory();
        memory_ = AlignedMemory(num_bytes + num_bytes / 4);
    }
    plan_.place(step.num_rows, reinterpret_cast<float*>(memory_.data()), outputs.data(), places_.data());
    for (size_t i = 0; i < inputs.size(); ++i) {
        const int buffer = inputs_[i];
        const Rows& to = places_[static_cast<size_t>(buffer)];
        paged_backend::select_rows(runtime_, {inputs[i].data, inputs[i].stride, nullptr, to.data, to.stride, arrays.num_rows,
                               buffers_[static_cast<size_t>(buffer)].width});
    }
    note("plan");
    for (const auto& node : nodes_) {
        node->run(step);
        note(node->name);
    }
}

}  // namespace paged_backend
