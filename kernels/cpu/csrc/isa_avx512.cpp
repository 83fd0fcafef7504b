// Kernels for AVX-512 F, BW, DQ and VL.
#define PAGED_BACKEND_LANES 16
#include "isa_table.h"

namespace paged_backend {

const KernelTable& kernel_table_avx512() {
    static const KernelTable table = table_of_this_file();
    return table;
}

}  // namespace paged_backend
