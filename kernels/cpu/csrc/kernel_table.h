// One instruction set's functions. Each isa_<set>.cpp is compiled for its set, includes all *_kernel.h, and fills one table.
#pragma once

#include "limits.h"
#include "linear.h"

namespace paged_backend {

struct KernelTable {
    int lanes;  // floats in a vector
    LinearKernels linear;
    LimitKernels limits;
};

const KernelTable& kernel_table_portable();
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_avx512();
const KernelTable& kernel_table_avx512_vnni();

}  // namespace paged_backend
