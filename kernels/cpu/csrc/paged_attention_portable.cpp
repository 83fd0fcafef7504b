#define PAGED_BACKEND_LANES 4
#include "paged_attention_kernel.h"

namespace paged_backend {

void paged_attention_task_portable(const PagedAttentionArgs& args, const PagedAttentionTask& task, float* scratch) {
    run_task(args, task, scratch);
}

}  // namespace paged_backend
