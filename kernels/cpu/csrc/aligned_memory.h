// Memory for packed weights: aligned, and in huge pages where the system gives them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace paged_backend {

class AlignedMemory {
  public:
    AlignedMemory() = default;

    // Not initialised. Throws std::bad_alloc.
    explicit AlignedMemory(int64_t size) : size_(size) {
        constexpr int64_t huge_page = 2 << 20;
        const int64_t alignment = size >= huge_page ? huge_page : 64;
        const int64_t rounded = (size + alignment - 1) / alignment * alignment;
        memory_.reset(static_cast<char*>(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded))));
        if (!memory_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (alignment == huge_page) madvise(memory_.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);  // a wish only
#endif
    }

    char* data() const { return memory_.get(); }
    int64_t size() const { return size_; }

  private:
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> memory_;
    int64_t size_ = 0;
};

}  // namespace paged_backend
