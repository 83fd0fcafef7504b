// What Python sees of the C++ kernels: takes tensors through DLPack, hands pointers and sizes on.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "paged_attention.h"

namespace nb = nanobind;
using namespace nb::literals;
using paged_backend::Dtype;
using paged_backend::PagedAttention;
using paged_backend::PagedAttentionArgs;

namespace {

using Rows = nb::ndarray<nb::device::cpu, nb::ndim<3>>;
using Cache = nb::ndarray<nb::device::cpu, nb::ndim<4>>;
using Table = nb::ndarray<const int32_t, nb::device::cpu, nb::ndim<2>, nb::c_contig>;
using Vector = nb::ndarray<const int32_t, nb::device::cpu, nb::ndim<1>, nb::c_contig>;

Dtype dtype_of(const char* name, const nb::dlpack::dtype& dtype) {
    if (dtype == nb::dtype<float>()) return Dtype::float32;
    if (dtype.bits == 16 && dtype.lanes == 1) {
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat)) return Dtype::bfloat16;
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return Dtype::float16;
    }
    throw std::invalid_argument(std::string(name) + " must be float32, bfloat16 or float16.");
}

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

void run(PagedAttention& operation, const Rows& query, const Cache& key_cache, const Cache& value_cache,
         const Table& block_tables, const Vector& query_start, const Vector& context_lens, const Rows& out, float scale,
         int64_t sliding_window, float soft_cap) {
    PagedAttentionArgs args;
    args.query = query.data();
    args.key_cache = key_cache.data();
    args.value_cache = value_cache.data();
    args.out = out.data();
    args.block_tables = block_tables.data();
    args.query_start = query_start.data();
    args.context_lens = context_lens.data();
    args.query_dtype = dtype_of("query", query.dtype());
    args.cache_dtype = dtype_of("key_cache", key_cache.dtype());
    args.query_row_stride = query.stride(0);
    args.key_block_stride = key_cache.stride(0);
    args.value_block_stride = value_cache.stride(0);
    args.num_rows = static_cast<int64_t>(query.shape(0));
    args.num_query_heads = static_cast<int64_t>(query.shape(1));
    args.head_size = static_cast<int64_t>(query.shape(2));
    args.num_blocks = static_cast<int64_t>(key_cache.shape(0));
    args.num_kv_heads = static_cast<int64_t>(key_cache.shape(1));
    args.block_size = static_cast<int64_t>(key_cache.shape(2));
    args.num_sequences = static_cast<int64_t>(context_lens.shape(0));
    args.max_blocks = static_cast<int64_t>(block_tables.shape(1));
    args.sliding_window = sliding_window;
    args.scale = scale;
    args.soft_cap = soft_cap;
    // What would read or write past a tensor is checked here too, though the caller has checked it.
    require(static_cast<int64_t>(key_cache.shape(3)) == args.head_size, "key_cache must have the query's head size.");
    require(value_cache.dtype() == key_cache.dtype(), "value_cache must have key_cache's dtype.");
    for (size_t i = 0; i < 4; ++i) {
        require(value_cache.shape(i) == key_cache.shape(i), "value_cache must have key_cache's shape.");
    }
    for (size_t i = 0; i < 3; ++i) require(out.shape(i) == query.shape(i), "out must have the query's shape.");
    require(out.dtype() == query.dtype(), "out must have the query's dtype.");
    require(query_start.shape(0) == context_lens.shape(0) + 1, "query_start must be one longer than context_lens.");
    require(block_tables.shape(0) == context_lens.shape(0), "block_tables must have a row for each of context_lens.");
    require(sliding_window >= 0, "sliding_window must be 0 (none) or more.");
    const nb::gil_scoped_release released;
    operation.run(args);
}

}  // namespace

NB_MODULE(_cpu, module) {
    // An operation that a Python module keeps until the interpreter ends is no leak.
    nb::set_leak_warnings(false);
    module.doc() = "C++ kernels for the CPU. Use them through paged_backend.kernels.registry.";
    module.def("available_instruction_sets", &paged_backend::available_instruction_sets,
               "Names of what this processor can run, the fastest first.");
    nb::class_<PagedAttention>(module, "PagedAttention", "Paged attention with its own threads.")
        .def(nb::init<int, const std::string&>(), "num_threads"_a, "instruction_set"_a = "auto")
        .def_prop_ro("num_threads", &PagedAttention::num_threads)
        .def_prop_ro("instruction_set", &PagedAttention::instruction_set)
        .def("run", &run, "query"_a, "key_cache"_a, "value_cache"_a, "block_tables"_a, "query_start"_a,
             "context_lens"_a, "out"_a, "scale"_a, "sliding_window"_a, "soft_cap"_a,
             "Writes the result into `out`. Raises ValueError, before anything is computed, for wrong tables or sizes.");
}
