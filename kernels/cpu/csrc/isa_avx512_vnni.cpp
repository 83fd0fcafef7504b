// Kernels for AVX-512 with VNNI and BF16.
#define PAGED_BACKEND_LANES 16
#include "isa_table.h"

namespace paged_backend {

const KernelTable& kernel_table_avx512_vnni() {
    static const KernelTable table = table_of_this_file();
    return table;
}

}  // namespace paged_backend
