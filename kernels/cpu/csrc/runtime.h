// What every operation of an engine shares: its threads, its instruction set, and per-thread memory.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "aligned_memory.h"
#include "kernel_table.h"
#include "thread_team.h"

namespace paged_backend {

class Runtime {
  public:
    // instruction_set: one of available_instruction_sets(), or "auto" for the first of them. Throws
    // std::invalid_argument.
    Runtime(int num_threads, const std::string& instruction_set);

    ThreadTeam& team() { return team_; }
    const KernelTable& kernels() const { return *kernels_; }
    const std::string& instruction_set() const { return instruction_set_; }

    // At least `bytes` of memory, aligned to 64 bytes, for each thread: one pointer a thread, valid until the next
    // call. Grows, never shrinks. Called by an operation's caller before team().run(). Throws std::bad_alloc.
    char* const* scratch(int64_t bytes);

    // Where an operation's caller notes how it cuts its work, until the next operation.
    std::vector<int64_t>& task_ends() { return task_ends_; }

    // Where weights are packed; used under turn().
    MemoryArena& weights() { return weights_; }

    // Operations and programs hold it while they run: calls from several threads take turns.
    std::mutex& turn() { return turn_; }

  private:
    std::string instruction_set_;
    const KernelTable* kernels_;
    ThreadTeam team_;
    AlignedMemory scratch_memory_;
    std::vector<char*> scratch_;
    int64_t scratch_bytes_ = 0;
    std::vector<int64_t> task_ends_;
    MemoryArena weights_;
    std::mutex turn_;
};

// What this processor can run, the fastest first ("avx512_vnni", "avx512", "avx2", "portable"); "portable" is always
// there.
std::vector<std::string> available_instruction_sets();

}  // namespace paged_backend
