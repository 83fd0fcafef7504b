#include "runtime.h"

#include <algorithm>
#include <stdexcept>

namespace paged_backend {

std::vector<std::string> available_instruction_sets_of_runtime() {
    std::vector<std::string> names;
#if defined(PAGED_BACKEND_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512vnni")) names.emplace_back("avx512_vnni");
    if (avx512) names.emplace_back("avx512");
    if (avx2) names.emplace_back("avx2");
#endif
    names.emplace_back("portable");
    return names;
}

namespace {
const KernelTable* table_of(const std::string& name) {
#if defined(PAGED_BACKEND_X86)
    if (name == "avx512_vnni") return &kernel_table_avx512_vnni();
    if (name == "avx512") return &kernel_table_avx512();
    if (name == "avx2") return &kernel_table_avx2();
#endif
    (void)name;
    return &kernel_table_portable();
}
}  // namespace

Runtime::Runtime(int num_threads, const std::string& instruction_set)
    : team_(std::max(1, num_threads)), instruction_set_(instruction_set) {
    const std::vector<std::string> available = available_instruction_sets_of_runtime();
    if (instruction_set_ == "auto") instruction_set_ = available.front();
    if (std::find(available.begin(), available.end(), instruction_set_) == available.end()) {
        throw std::invalid_argument("instruction_set must be auto or one that this processor has, got " + instruction_set_ + ".");
    }
    kernels_ = table_of(instruction_set_);
}

char* const* Runtime::scratch(int64_t bytes) {
    if (bytes > bytes_ || pointers_.empty()) {
        bytes_ = 0;
        memory_.clear();
        pointers_.clear();
        for (int thread = 0; thread < team_.size(); ++thread) {
            memory_.emplace_back(bytes + 64);
            pointers_.push_back(memory_.back().data());
        }
        bytes_ = bytes;
    }
    return pointers_.data();
}

}  // namespace paged_backend
