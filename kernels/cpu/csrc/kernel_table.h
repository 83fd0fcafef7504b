// One instruction set's functions. Each isa_<set>.cpp is compiled for its set, includes all *_kernel.h, and fills one
// table (isa_table.h).
#pragma once

#include "machine_limits.h"
#include "linear.h"
#include "paged_attention.h"
#include "rows.h"
#include "sampling.h"

namespace paged_backend {

struct KernelTable {
    int lanes;  // floats in a vector
    RowKernels rows;
    LinearKernels linear;
    PagedAttentionKernel paged_attention;
    SamplingKernels sampling;
    LimitKernels limits;
};

const KernelTable& kernel_table_portable();
const KernelTable& kernel_table_avx2();
const KernelTable& kernel_table_avx512();
const KernelTable& kernel_table_avx512_vnni();

}  // namespace paged_backend
