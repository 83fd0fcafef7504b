// Kernels for AVX2, FMA and F16C.
#define PAGED_BACKEND_LANES 8
#include "isa_table.h"

namespace paged_backend {

const KernelTable& kernel_table_avx2() {
    static const KernelTable table = table_of_this_file();
    return table;
}

}  // namespace paged_backend
