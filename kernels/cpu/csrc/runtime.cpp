#include "runtime.h"

#include <algorithm>
#include <stdexcept>

#include "whole_numbers.h"

namespace paged_backend {

namespace {

constexpr int max_threads = 1024;

int checked_threads(int num_threads) {
    if (num_threads < 1 || num_threads > max_threads) {
        throw std::invalid_argument("num_threads must be 1 or more, and " + std::to_string(max_threads) +
                                    " at most, got " + std::to_string(num_threads) + ".");
    }
    return num_threads;
}

std::string chosen(const std::string& name) {
    const std::vector<std::string> available = available_instruction_sets();
    if (name == "auto") return available.front();
    if (std::find(available.begin(), available.end(), name) != available.end()) return name;
    std::string known;
    for (const std::string& other : available) known += ", " + other;
    throw std::invalid_argument("instruction_set must be auto" + known + " on this processor, got " + name + ".");
}

const KernelTable& table_of(const std::string& instruction_set) {
#if defined(PAGED_BACKEND_X86)
    if (instruction_set == "avx512_vnni") return kernel_table_avx512_vnni();
    if (instruction_set == "avx512") return kernel_table_avx512();
    if (instruction_set == "avx2") return kernel_table_avx2();
#endif
    (void)instruction_set;
    return kernel_table_portable();
}

}  // namespace

std::vector<std::string> available_instruction_sets() {
    std::vector<std::string> names;
#if defined(PAGED_BACKEND_X86)
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && __builtin_cpu_supports("avx512vnni")) names.emplace_back("avx512_vnni");
    if (has_avx512) names.emplace_back("avx512");
    if (has_avx2) names.emplace_back("avx2");
#endif
    names.emplace_back("portable");
    return names;
}

Runtime::Runtime(int num_threads, const std::string& instruction_set)
    : instruction_set_(chosen(instruction_set)),
      kernels_(&table_of(instruction_set_)),
      team_(checked_threads(num_threads)),
      scratch_(static_cast<size_t>(num_threads), nullptr) {}

char* const* Runtime::scratch(int64_t bytes) {
    if (bytes > scratch_bytes_) {
        // A part of its own for each thread, not a multiple of a page apart.
        const int64_t each = round_up(bytes, 4096) + 64;
        const auto num_threads = static_cast<int64_t>(scratch_.size());
        scratch_bytes_ = 0;
        scratch_memory_ = AlignedMemory();
        scratch_memory_ = AlignedMemory(each * num_threads);
        for (int64_t i = 0; i < num_threads; ++i) scratch_[static_cast<size_t>(i)] = scratch_memory_.data() + i * each;
        scratch_bytes_ = each;
    }
    return scratch_.data();
}

}  // namespace paged_backend
