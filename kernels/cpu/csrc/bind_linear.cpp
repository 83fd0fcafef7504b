// What Python sees of packed linear layers: takes tensors through DLPack, hands pointers and sizes on.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"
#include "machine_limits.h"
#include "runtime.h"
#include "whole_numbers.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paged_backend;

namespace {

using Matrix = nb::ndarray<nb::ro, nb::device::cpu, nb::ndim<2>>;
using Int8Matrix = nb::ndarray<const int8_t, nb::device::cpu, nb::ndim<2>>;
using FloatMatrix = nb::ndarray<const float, nb::device::cpu, nb::ndim<2>>;
using FloatVector = nb::ndarray<const float, nb::device::cpu, nb::ndim<1>>;
using OutMatrix = nb::ndarray<float, nb::device::cpu, nb::ndim<2>>;

void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

WeightFormat float_format(const nb::dlpack::dtype& dtype) {
    if (dtype == nb::dtype<float>()) return WeightFormat::float32;
    if (dtype.bits == 16 && dtype.lanes == 1) {
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat)) return WeightFormat::bfloat16;
        if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return WeightFormat::float16;
    }
    throw std::invalid_argument("weight must be float32, bfloat16 or float16.");
}

template <class Array>
void require_rows(const char* name, const Array& array) {
    const auto address = reinterpret_cast<uintptr_t>(array.data());
    const uintptr_t size = array.dtype().bits / 8;
    require(address % size == 0,
            std::string(name) + " must be aligned to its numbers' " + std::to_string(size) + " bytes.");
    require(array.shape(0) == 0 || array.shape(1) <= 1 || array.stride(1) == 1,
            std::string(name) + "'s last dimension must have stride 1.");
    require(array.shape(0) <= 1 || array.stride(0) >= static_cast<int64_t>(array.shape(1)),
            std::string(name) + "'s rows must not overlap.");
}

const float* bias_of(const std::optional<FloatVector>& bias, size_t num_rows) {
    if (!bias) return nullptr;
    require(bias->shape(0) == num_rows,
            "bias must be [" + std::to_string(num_rows) + "], got [" + std::to_string(bias->shape(0)) + "].");
    require(num_rows <= 1 || bias->stride(0) == 1, "bias must be contiguous.");
    require(reinterpret_cast<uintptr_t>(bias->data()) % sizeof(float) == 0, "bias must be aligned to 4 bytes.");
    return bias->data();
}

std::unique_ptr<PackedLinear> pack(Runtime& runtime, const LinearWeights& weights, const std::string& route) {
    const LinearRoute chosen = linear_route_of(route);
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(runtime.turn());
    return std::make_unique<PackedLinear>(runtime, weights, chosen);
}

std::unique_ptr<PackedLinear> pack_floats(Runtime& runtime, const Matrix& weight,
                                          const std::optional<FloatVector>& bias, bool gated) {
    LinearWeights weights;
    weights.format = float_format(weight.dtype());
    require_rows("weight", weight);
    weights.values = weight.data();
    weights.num_rows = static_cast<int64_t>(weight.shape(0));
    weights.num_inputs = static_cast<int64_t>(weight.shape(1));
    weights.row_stride = weight.stride(0);
    weights.bias = bias_of(bias, weight.shape(0));
    weights.gated = gated;
    return pack(runtime, weights, "auto");
}

std::unique_ptr<PackedLinear> pack_quantized(Runtime& runtime, const Int8Matrix& values, const FloatMatrix& scales,
                                             int bits, int64_t group_size, const std::optional<FloatVector>& bias,
                                             bool gated, const std::string& route) {
    require(bits == 8 || bits == 4, "bits must be 8 or 4, got " + std::to_string(bits) + ".");
    require_rows("values", values);
    require(values.shape(0) > 0 && values.shape(1) > 0, "values must be [N, K], neither of them 0.");
    const int64_t num_inputs = static_cast<int64_t>(values.shape(1));
    require(group_size >= 1 && group_size <= num_inputs,
            "group_size must be in 1.." + std::to_string(num_inputs) + ", got " + std::to_string(group_size) + ".");
    const int64_t num_groups = divide_up(num_inputs, group_size);
    require(scales.shape(0) == values.shape(0) && static_cast<int64_t>(scales.shape(1)) == num_groups,
            "scales must be [" + std::to_string(values.shape(0)) + ", " + std::to_string(num_groups) + "], got [" +
                std::to_string(scales.shape(0)) + ", " + std::to_string(scales.shape(1)) + "].");
    require_rows("scales", scales);
    require(scales.shape(0) == 1 || scales.stride(0) == num_groups, "scales must be contiguous.");
    LinearWeights weights;
    weights.format = bits == 8 ? WeightFormat::int8 : WeightFormat::int4;
    weights.values = values.data();
    weights.num_rows = static_cast<int64_t>(values.shape(0));
    weights.num_inputs = num_inputs;
    weights.row_stride = values.stride(0);
    weights.scales = scales.data();
    weights.group_size = group_size;
    weights.bias = bias_of(bias, values.shape(0));
    weights.gated = gated;
    return pack(runtime, weights, route);
}

template <class Array>
std::string shape_of(const Array& array) {
    return "[" + std::to_string(array.shape(0)) + ", " + std::to_string(array.shape(1)) + "]";
}

template <class Array>
void require_floats(const char* name, const Array& array, size_t num_rows, int64_t width) {
    require(array.shape(0) == num_rows && static_cast<int64_t>(array.shape(1)) == width,
            std::string(name) + " must be [" + std::to_string(num_rows) + ", " + std::to_string(width) + "], got " +
                shape_of(array) + ".");
    require_rows(name, array);
}

// Seconds of one call, in the best twentieth of calls of one layer after the other.
double time_layers(const std::vector<const PackedLinear*>& layers, Runtime& runtime, const FloatMatrix& x,
                   const OutMatrix& out, const std::string& activation, double seconds) {
    require(!layers.empty(), "layers must not be empty.");
    require(seconds > 0.0 && seconds <= 60.0, "seconds must be more than 0, and 60 at most.");
    LinearCall call;
    for (const PackedLinear* layer : layers) {
        require_floats("x", x, x.shape(0), layer->num_inputs());
        require_floats("out", out, x.shape(0), layer->num_outputs());
    }
    call.x = x.data();
    call.x_stride = x.stride(0);
    call.num_rows = static_cast<int64_t>(x.shape(0));
    call.out = out.data();
    call.out_stride = out.stride(0);
    call.activation = activation_of(activation);
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> turn(runtime.turn());
    const int num_threads = runtime.team().size();
    const double end = benchmark_clock(num_threads) + seconds;
    std::vector<double> times;
    do {
        for (const PackedLinear* layer : layers) {
            const double begin = benchmark_clock(num_threads);
            layer->run(runtime, call);
            times.push_back(benchmark_clock(num_threads) - begin);
        }
    } while (benchmark_clock(num_threads) < end);
    const auto chosen = times.begin() + static_cast<int64_t>(times.size() / 20);
    std::nth_element(times.begin(), chosen, times.end());
    return *chosen;
}

nb::dict limits(Runtime& runtime, double seconds) {
    require(seconds > 0.0 && seconds <= 60.0, "seconds must be more than 0, and 60 at most.");
    Limits measured;
    {
        const nb::gil_scoped_release released;
        const std::lock_guard<std::mutex> turn(runtime.turn());
        measured = measure_limits(runtime, seconds);
    }
    nb::dict result;
    result["float_flops"] = measured.float_flops;
    result["int8_ops"] = measured.int8_ops;
    result["int16_ops"] = measured.int16_ops;
    result["memory_bytes"] = measured.memory_bytes;
    result["memory_mean_bytes"] = measured.memory_mean_bytes;
    result["l3_bytes"] = measured.l3_bytes;
    result["l2_bytes"] = measured.l2_bytes;
    return result;
}

}  // namespace

void bind_linear(nb::module_& module) {
    nb::class_<PackedLinear>(module, "PackedLinear",
                             "A linear layer's weight, packed for one runtime's instruction set.")
        .def_prop_ro("num_inputs", &PackedLinear::num_inputs)
        .def_prop_ro("num_outputs", &PackedLinear::num_outputs)
        .def_prop_ro("num_bytes", &PackedLinear::num_bytes)
        .def_prop_ro("gated", &PackedLinear::is_gated)
        .def_prop_ro("route", [](const PackedLinear& layer) { return std::string(name_of(layer.route())); });
    module.def("pack_linear", &pack_floats, "runtime"_a, "weight"_a, "bias"_a = nb::none(), "gated"_a = false);
    module.def("pack_quantized_linear", &pack_quantized, "runtime"_a, "values"_a, "scales"_a, "bits"_a, "group_size"_a,
               "bias"_a = nb::none(), "gated"_a = false, "route"_a = "auto");
    module.def("time_linear", &time_layers, "layers"_a, "runtime"_a, "x"_a, "out"_a, "activation"_a, "seconds"_a,
               "For benchmarks: seconds of a call, in the best twentieth of calls of one layer after the other.");
    module.def("measure_limits", &limits, "runtime"_a, "seconds"_a,
               "What the machine can do at most, operations and bytes a second: from `seconds` of short runs each.");
}
