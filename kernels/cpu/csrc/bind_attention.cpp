// What Python sees of block copies, and of the time that paged attention takes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "copy_blocks.h"
#include "machine_limits.h"
#include "paged_attention.h"
#include "runtime.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paged_backend {

namespace {

using Rows = nb::ndarray<float, nb::device::cpu, nb::ndim<2>>;
using Blocks = nb::ndarray<uint8_t, nb::device::cpu, nb::ndim<2>>;
using Storage = nb::ndarray<uint8_t, nb::device::cpu, nb::ndim<4>, nb::c_contig>;
using Pairs = nb::ndarray<const int64_t, nb::device::cpu, nb::ndim<2>, nb::c_contig>;
using Table = nb::ndarray<const int32_t, nb::device::cpu, nb::ndim<2>, nb::c_contig>;
using Vector = nb::ndarray<const int32_t, nb::device::cpu, nb::ndim<1>, nb::c_contig>;

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

template <class Array>
int64_t size(const Array& array, size_t dimension) {
    return static_cast<int64_t>(array.shape(dimension));
}

CacheDtype cache_dtype(const std::string& name) {
    if (name == "float32") return CacheDtype::float32;
    if (name == "bfloat16") return CacheDtype::bfloat16;
    if (name == "float16") return CacheDtype::float16;
    if (name == "int8") return CacheDtype::int8;
    throw std::invalid_argument("cache dtype must be float32, bfloat16, float16 or int8, got " + name + ".");
}

void require_blocks(const Blocks& blocks, int64_t bytes, const std::string& name) {
    if (size(blocks, 1) != bytes || blocks.stride(1) != 1 || blocks.stride(0) < bytes || blocks.stride(0) % 4 != 0 ||
        reinterpret_cast<uintptr_t>(blocks.data()) % 4 != 0) {
        throw std::invalid_argument(name + " must be contiguous blocks of " + std::to_string(bytes) +
                                    " bytes, aligned to 4 bytes.");
    }
}

// What one call computes, all but its plan. Nothing is computed yet.
PagedAttentionArgs args_of(const Rows& query, const Blocks& keys, const Blocks& values, const std::string& dtype,
                           int64_t num_kv_heads, int64_t block_size, int64_t head_size, const Table& block_tables,
                           const Vector& query_start, const Vector& context_lens, const Rows& out, float scale) {
    PagedAttentionArgs args;
    args.cache = {cache_dtype(dtype), num_kv_heads, block_size, head_size};
    require(num_kv_heads > 0 && block_size > 0 && head_size > 0, "num_kv_heads, block_size and head_size must be 1 or more.");
    require(num_kv_heads < 1 << 20 && block_size < 1 << 20 && head_size < 1 << 20,
            "num_kv_heads, block_size and head_size must be less than 2^20.");
    require_blocks(keys, block_bytes(args.cache), "keys");
    require_blocks(values, block_bytes(args.cache), "values");
    require(size(keys, 0) == size(values, 0), "values must have as many blocks as keys.");
    require(size(query, 1) % head_size == 0 && query.stride(1) == 1, "query must be [T, Hq * head_size], contiguous in each row.");
    require(size(out, 0) == size(query, 0) && size(out, 1) == size(query, 1) && out.stride(1) == 1 &&
                (size(out, 0) < 2 || out.stride(0) >= size(out, 1)),
            "out must be like query.");
    require(query_start.shape(0) == context_lens.shape(0) + 1, "query_start must be one longer than context_lens.");
    require(block_tables.shape(0) == context_lens.shape(0), "block_tables must have a row for each of context_lens.");
    args.query = query.data();
    args.keys = reinterpret_cast<const char*>(keys.data());
    args.values = reinterpret_cast<const char*>(values.data());
    args.out = out.data();
    args.query_stride = query.stride(0);
    args.out_stride = out.stride(0);
    args.key_block_stride = keys.stride(0);
    args.value_block_stride = values.stride(0);
    args.block_tables = block_tables.data();
    args.query_start = query_start.data();
    args.context_lens = context_lens.data();
    args.num_rows = size(query, 0);
    args.num_sequences = size(context_lens, 0);
    args.max_blocks = size(block_tables, 1);
    args.num_blocks = size(keys, 0);
    args.num_query_heads = size(query, 1) / head_size;
    args.sliding_window = 0;
    args.scale = scale;
    args.soft_cap = 0.0f;
    return args;
}

double time_paged_attention(Runtime& runtime, const Rows& query, const std::vector<std::pair<Blocks, Blocks>>& layers,
                            const std::string& dtype, int64_t num_kv_heads, int64_t block_size, int64_t head_size,
                            const Table& block_tables, const Vector& query_start, const Vector& context_lens,
                            const Rows& out, float scale, double seconds) {
    require(!layers.empty(), "layers must not be empty.");
    require(seconds > 0.0 && seconds <= 60.0, "seconds must be more than 0, and 60 at most.");
    std::vector<PagedAttentionArgs> calls;
    for (const auto& [keys, values] : layers) {
        calls.push_back(args_of(query, keys, values, dtype, num_kv_heads, block_size, head_size, block_tables,
                                query_start, context_lens, out, scale));
        require(calls.back().num_blocks == calls.front().num_blocks, "all layers must have as many blocks.");
    }
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(runtime.turn());
    PagedAttention operation;
    operation.plan(calls.front(), runtime.team().size());
    std::vector<double> times;
    const int num_threads = runtime.team().size();
    const double end = benchmark_clock(num_threads) + seconds;
    do {
        for (const PagedAttentionArgs& args : calls) {
            const double begin = benchmark_clock(num_threads);
            operation.run(runtime, args);
            times.push_back(benchmark_clock(num_threads) - begin);
        }
    } while (benchmark_clock(num_threads) < end);
    const auto chosen = times.begin() + static_cast<int64_t>(times.size() / 20);
    std::nth_element(times.begin(), chosen, times.end());
    return *chosen;
}

void run_copy_blocks(Runtime& runtime, const Storage& storage, const Pairs& pairs) {
    require(storage.shape(1) == 2, "storage must be uint8 [L, 2, B, block_bytes].");
    require(pairs.shape(1) == 2, "pairs must be int64 [N, 2].");
    CopyBlocksArgs args;
    args.storage = reinterpret_cast<char*>(storage.data());
    args.pairs = pairs.data();
    args.num_tables = size(storage, 0) * 2;
    args.num_blocks = size(storage, 2);
    args.block_bytes = size(storage, 3);
    args.num_pairs = size(pairs, 0);
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(runtime.turn());
    copy_blocks(runtime, args);
}

}  // namespace

void bind_attention(nb::module_& module) {
    module.def("time_paged_attention", &time_paged_attention, "runtime"_a, "query"_a, "layers"_a, "dtype"_a,
               "num_kv_heads"_a, "block_size"_a, "head_size"_a, "block_tables"_a, "query_start"_a, "context_lens"_a,
               "out"_a, "scale"_a, "seconds"_a,
               "For benchmarks: seconds of a call, in the best twentieth of calls of one layer after the other; a layer is "
               "its keys and values.");
    module.def("copy_blocks", &run_copy_blocks, "runtime"_a, "storage"_a.noconvert(), "pairs"_a,
               "Copies blocks of all layers. Raises ValueError, before anything is copied, for wrong pairs.");
}

}  // namespace paged_backend
