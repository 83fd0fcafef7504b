#define PAGED_BACKEND_LANES 8
#include "paged_attention_kernel.h"

namespace paged_backend {

void paged_attention_task_avx2(const PagedAttentionArgs& args, const PagedAttentionTask& task, float* scratch) {
    run_task(args, task, scratch);
}

}  // namespace paged_backend
