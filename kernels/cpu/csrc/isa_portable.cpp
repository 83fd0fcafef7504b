#define PAGED_BACKEND_LANES 4
#include "kernel_table.h"
#include "limits_kernel.h"
#include "linear_kernel.h"

namespace paged_backend {

const KernelTable& kernel_table_portable() {
    static const KernelTable table = {PAGED_BACKEND_LANES, linear_kernels(), limit_kernels()};
    return table;
}

}  // namespace paged_backend
