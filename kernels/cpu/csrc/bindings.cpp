// The Python module `_cpu`: each area binds its own part.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "runtime.h"

namespace nb = nanobind;
using namespace nb::literals;
using paged_backend::Runtime;

void bind_linear(nb::module_& module);

namespace paged_backend {
void bind_attention(nb::module_& module);
void bind_program(nb::module_& module);
void bind_sampling(nb::module_& module);
}  // namespace paged_backend

NB_MODULE(_cpu, module) {
    // An object that a Python module keeps until the interpreter ends is no leak.
    nb::set_leak_warnings(false);
    module.doc() = "C++ kernels for the CPU. Use them through paged_backend.kernels.registry.";
    module.def("available_instruction_sets", &paged_backend::available_instruction_sets,
               "Names of what this processor can run, the fastest first.");
    nb::class_<Runtime>(module, "Runtime", "Threads, an instruction set and scratch memory, for all operations.")
        .def(nb::init<int, const std::string&>(), "num_threads"_a, "instruction_set"_a = "auto")
        .def_prop_ro("num_threads", [](Runtime& runtime) { return runtime.team().size(); })
        .def_prop_ro("instruction_set", &Runtime::instruction_set);
    bind_linear(module);
    paged_backend::bind_attention(module);
    paged_backend::bind_sampling(module);
    paged_backend::bind_program(module);
}
