// Kernels for any processor: 128-bit vectors.
#define PAGED_BACKEND_LANES 4
#include "isa_table.h"

namespace paged_backend {

const KernelTable& kernel_table_portable() {
    static const KernelTable table = table_of_this_file();
    return table;
}

}  // namespace paged_backend
