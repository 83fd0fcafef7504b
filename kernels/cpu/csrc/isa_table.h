// The table of the instruction set that the including file is compiled for. Define PAGED_BACKEND_LANES before.
//
// Everything that the kernels are made of is private to the including file, and they use no function templates of the
// standard library: the linker keeps one copy of those, which may be the one that only newer processors can run.
#pragma once

#include "kernel_table.h"
#include "machine_limits_kernel.h"
#include "linear_kernel.h"
#include "paged_attention_kernel.h"
#include "rows_kernel.h"
#include "sampling_kernel.h"

namespace paged_backend {
namespace {

inline KernelTable table_of_this_file() {
    KernelTable table = {};
    table.lanes = PAGED_BACKEND_LANES;
    table.rows = row_kernels();
    table.linear = linear_kernels();
    table.paged_attention = paged_attention_kernel;
    table.sampling = sampling_kernels();
    table.limits = limit_kernels();
    return table;
}

}  // namespace
}  // namespace paged_backend
