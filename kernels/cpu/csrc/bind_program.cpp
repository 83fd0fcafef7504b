// What Python sees of programs: records by tensors, runs by addresses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "program.h"
#include "runtime.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paged_backend {

namespace {

using Table = nb::ndarray<nb::ro, nb::device::cpu, nb::ndim<2>, nb::c_contig>;
using FloatTable = nb::ndarray<const float, nb::device::cpu, nb::ndim<2>, nb::c_contig>;
using FloatVector = nb::ndarray<const float, nb::device::cpu, nb::ndim<1>, nb::c_contig>;
using Blocks = nb::ndarray<uint8_t, nb::device::cpu, nb::ndim<2>>;
using Buffer = std::optional<int>;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

template <class Array>
int64_t size(const Array& array, size_t dimension) {
    return static_cast<int64_t>(array.shape(dimension));
}

int or_none(const Buffer& buffer) { return buffer ? *buffer : Program::none; }

const float* data_of(const char* name, const std::optional<FloatVector>& vector, int64_t wanted) {
    if (!vector) return nullptr;
    if (size(*vector, 0) != wanted) {
        refuse(std::string(name) + " must be float32 [" + std::to_string(wanted) + "], got [" +
               std::to_string(size(*vector, 0)) + "].");
    }
    return vector->data();
}

TableDtype table_dtype(const nb::dlpack::dtype& dtype) {
    if (dtype == nb::dtype<float>()) return TableDtype::float32;
    if (dtype.bits == 16 && dtype.lanes == 1) {
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat)) return TableDtype::bfloat16;
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return TableDtype::float16;
    }
    refuse("table must be float32, bfloat16 or float16.");
}

CacheDtype cache_dtype(const std::string& name) {
    if (name == "float32") return CacheDtype::float32;
    if (name == "bfloat16") return CacheDtype::bfloat16;
    if (name == "float16") return CacheDtype::float16;
    if (name == "int8") return CacheDtype::int8;
    refuse("cache dtype must be float32, bfloat16, float16 or int8, got " + name + ".");
}

void check_blocks(const char* name, const Blocks& blocks, int64_t bytes) {
    if (size(blocks, 1) != bytes || blocks.stride(1) != 1 || blocks.stride(0) < bytes ||
        blocks.stride(0) % block_alignment != 0 || reinterpret_cast<uintptr_t>(blocks.data()) % block_alignment != 0) {
        refuse(std::string(name) + " must be contiguous blocks of " + std::to_string(bytes) + " bytes, aligned to " +
               std::to_string(block_alignment) + " bytes.");
    }
}

CacheTables cache_tables(const Blocks& keys, const Blocks& values, const std::string& dtype, int64_t num_kv_heads,
                         int64_t block_size, int64_t head_size, int64_t group) {
    constexpr int64_t most = 1 << 20;
    for (const int64_t number : {num_kv_heads, block_size, head_size}) {
        if (number < 1 || number > most) refuse("the cache's sizes must be in 1.." + std::to_string(most) + ".");
    }
    CacheTables tables;
    tables.layout = {cache_dtype(dtype), num_kv_heads, block_size, head_size};
    check_blocks("keys", keys, block_bytes(tables.layout));
    check_blocks("values", values, block_bytes(tables.layout));
    if (size(keys, 0) != size(values, 0)) refuse("values must have as many blocks as keys.");
    tables.keys = reinterpret_cast<char*>(keys.data());
    tables.values = reinterpret_cast<char*>(values.data());
    tables.key_block_stride = keys.stride(0);
    tables.value_block_stride = values.stride(0);
    tables.num_blocks = size(keys, 0);
    tables.group = group;
    return tables;
}

int record_embedding(Program& program, const Table& table, const std::string& indices, const Buffer& add) {
    if (indices != "token_ids" && indices != "positions") refuse("indices must be token_ids or positions, got " + indices + ".");
    return program.embedding({table.data(), table_dtype(table.dtype()), size(table, 0), size(table, 1)},
                             indices == "token_ids" ? Indices::token_ids : Indices::positions, or_none(add));
}

int record_rms_norm(Program& program, int x, const FloatVector& weight, float eps) {
    return program.rms_norm(x, weight.data(), size(weight, 0), eps);
}

int record_layer_norm(Program& program, int x, const std::optional<FloatVector>& weight,
                      const std::optional<FloatVector>& bias, float eps) {
    const int64_t width = program.width(x);
    return program.layer_norm(x, data_of("weight", weight, width), data_of("bias", bias, width), width, eps);
}

int record_linear(Program& program, int x, const PackedLinear& weight, const std::string& activation,
                  const Buffer& residual) {
    return program.linear(x, weight, activation_of(activation), or_none(residual));
}

int record_qkv_to_cache(Program& program, int qkv, const Blocks& keys, const Blocks& values, const std::string& dtype,
                        int64_t num_kv_heads, int64_t block_size, int64_t head_size, int64_t num_heads,
                        const std::optional<FloatTable>& cos, const std::optional<FloatTable>& sin,
                        const std::optional<FloatVector>& query_norm, const std::optional<FloatVector>& key_norm,
                        float norm_eps, int64_t group) {
    const CacheTables cache = cache_tables(keys, values, dtype, num_kv_heads, block_size, head_size, group);
    RotaryTables rotary;
    if (cos.has_value() != sin.has_value()) refuse("cos and sin must be given both, or neither.");
    if (cos) {
        if (size(*cos, 0) != size(*sin, 0) || size(*cos, 1) != size(*sin, 1)) refuse("sin must be like cos.");
        rotary = {cos->data(), sin->data(), size(*cos, 0), size(*cos, 1)};
    }
    return program.qkv_to_cache(qkv, cache, num_heads, rotary,
                                {data_of("query_norm", query_norm, head_size), data_of("key_norm", key_norm, head_size),
                                 norm_eps});
}

int record_paged_attention(Program& program, int query, const Blocks& keys, const Blocks& values,
                           const std::string& dtype, int64_t num_kv_heads, int64_t block_size, int64_t head_size,
                           float scale, int64_t sliding_window, float soft_cap, int64_t group) {
    const CacheTables cache = cache_tables(keys, values, dtype, num_kv_heads, block_size, head_size, group);
    return program.paged_attention(query, cache, scale, sliding_window, soft_cap);
}

using Address = uintptr_t;  // 0: not there
using Addresses = std::vector<std::pair<Address, int64_t>>;  // with the floats from row to row

std::vector<Program::Rows> rows_at(const Addresses& addresses) {
    std::vector<Program::Rows> rows;
    rows.reserve(addresses.size());
    for (const auto& [address, stride] : addresses) rows.push_back({reinterpret_cast<float*>(address), stride});
    return rows;
}

void run(Program& program, int64_t num_rows, Address token_ids, Address positions, Address slot_mapping,
         int64_t num_sequences, int64_t num_groups, int64_t max_blocks, Address block_tables, Address query_start,
         Address context_lens, int64_t num_logits_rows, Address logits_rows, const Addresses& inputs,
         const Addresses& outputs) {
    StepArrays arrays;
    arrays.token_ids = reinterpret_cast<const int64_t*>(token_ids);
    arrays.positions = reinterpret_cast<const int64_t*>(positions);
    arrays.slots = reinterpret_cast<const int64_t*>(slot_mapping);
    arrays.block_tables = reinterpret_cast<const int32_t*>(block_tables);
    arrays.query_start = reinterpret_cast<const int32_t*>(query_start);
    arrays.context_lens = reinterpret_cast<const int32_t*>(context_lens);
    arrays.has_logits_rows = num_logits_rows >= 0;
    arrays.logits_rows = reinterpret_cast<const int64_t*>(logits_rows);
    arrays.num_rows = num_rows;
    arrays.num_sequences = num_sequences;
    arrays.num_groups = num_groups;
    arrays.max_blocks = max_blocks;
    arrays.num_logits_rows = num_logits_rows;
    const std::vector<Program::Rows> from = rows_at(inputs), to = rows_at(outputs);
    const nb::gil_scoped_release released;
    program.run(arrays, from, to);
}

// A tensor whose address is kept: a converted copy of it would be gone after the call.
auto kept(const char* name) { return nb::arg(name).noconvert(); }

}  // namespace

void bind_program(nb::module_& module) {
    using Keep2 = nb::keep_alive<1, 2>;
    using Keep3 = nb::keep_alive<1, 3>;
    using Keep4 = nb::keep_alive<1, 4>;
    nb::class_<Program>(module, "Program",
                        "A step's operations, recorded once. Buffers are numbers; weights, tables and caches are kept.")
        .def(nb::init<Runtime&>(), "runtime"_a, Keep2())
        .def("input", &Program::input, "width"_a)
        .def("embedding", &record_embedding, kept("table"), "indices"_a, "add"_a.none(), Keep2())
        .def("rms_norm", &record_rms_norm, "x"_a, kept("weight"), "eps"_a, Keep3())
        .def("layer_norm", &record_layer_norm, "x"_a, kept("weight").none(), kept("bias").none(), "eps"_a, Keep3(),
             Keep4())
        .def("linear", &record_linear, "x"_a, "weight"_a, "activation"_a, "residual"_a.none(), Keep3())
        .def("qkv_to_cache", &record_qkv_to_cache, "qkv"_a, kept("keys"), kept("values"), "dtype"_a, "num_kv_heads"_a,
             "block_size"_a, "head_size"_a, "num_heads"_a, kept("cos").none(), kept("sin").none(),
             kept("query_norm").none(), kept("key_norm").none(), "norm_eps"_a, "group"_a, Keep3(), Keep4(),
             nb::keep_alive<1, 10>(), nb::keep_alive<1, 11>(), nb::keep_alive<1, 12>(), nb::keep_alive<1, 13>())
        .def("paged_attention", &record_paged_attention, "query"_a, kept("keys"), kept("values"), "dtype"_a,
             "num_kv_heads"_a, "block_size"_a, "head_size"_a, "scale"_a, "sliding_window"_a, "soft_cap"_a, "group"_a,
             Keep3(), Keep4())
        .def("select_rows", &Program::select_rows, "x"_a)
        .def("soft_cap", &Program::soft_cap, "x"_a, "cap"_a)
        .def("finish", &Program::finish, "outputs"_a)
        .def("width", &Program::width, "buffer"_a)
        .def("has_logits_rows", &Program::has_logits_rows, "buffer"_a)
        .def("output_stride", &Program::output_stride, "index"_a)
        .def("run", &run, "num_rows"_a, "token_ids"_a, "positions"_a, "slot_mapping"_a, "num_sequences"_a,
             "num_groups"_a, "max_blocks"_a, "block_tables"_a, "query_start"_a, "context_lens"_a, "num_logits_rows"_a,
             "logits_rows"_a, "inputs"_a, "outputs"_a,
             "Computes a step. Arrays are given by address (0: not there), num_logits_rows -1 means all rows. Raises "
             "ValueError, before anything is written, for indices or tables out of range.")
        .def_rw("timed", &Program::timed)
        .def_prop_ro("seconds", &Program::seconds, nb::call_guard<nb::gil_scoped_release>(),
                     "Spent in each kind of operation while `timed` was set.");
}

}  // namespace paged_backend
