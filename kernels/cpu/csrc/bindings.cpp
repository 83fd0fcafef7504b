// The module `_cpu`: each area binds its own part.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "runtime.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_linear(nb::module_& module);

NB_MODULE(_cpu, module) {
    // An operation that a Python module keeps until the interpreter ends is no leak.
    nb::set_leak_warnings(false);
    module.doc() = "C++ kernels for the CPU. Use them through paged_backend.kernels.registry.";
    module.def("available_instruction_sets", &paged_backend::available_instruction_sets_of_runtime,
               "Names of what this processor can run, the fastest first.");
    nb::class_<paged_backend::Runtime>(module, "Runtime")
        .def(nb::init<int, const std::string&>(), "num_threads"_a, "instruction_set"_a = "auto")
        .def_prop_ro("instruction_set", &paged_backend::Runtime::instruction_set);
    bind_linear(module);
}
