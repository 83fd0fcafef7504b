// Memory for weights and activations: aligned, and in huge pages where the system gives them. A core reads a cold
// buffer of 4 KiB pages at little more than half of the speed of one of 2 MiB pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace paged_backend {

constexpr int64_t huge_page_bytes = 2 << 20;

// A piece of memory, freed with its last part.
class AlignedMemory {
  public:
    AlignedMemory() = default;

    // Aligned to 64 bytes, not initialised. Throws std::bad_alloc.
    explicit AlignedMemory(int64_t size) : size_(size) {
        const int64_t alignment = size >= huge_page_bytes ? huge_page_bytes : 64;
        const int64_t rounded = (size + alignment - 1) / alignment * alignment;
        void* memory = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
        if (memory == nullptr) throw std::bad_alloc();
        memory_ = std::shared_ptr<char>(static_cast<char*>(memory), std::free);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (alignment == huge_page_bytes) madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // a wish only
#endif
    }

    AlignedMemory(AlignedMemory&&) = default;
    AlignedMemory& operator=(AlignedMemory&&) = default;

    // Part of another piece, which lives as long as this one.
    AlignedMemory(const AlignedMemory& whole, int64_t offset, int64_t size)
        : memory_(whole.memory_, whole.data() + offset), size_(size) {}

    char* data() const { return memory_.get(); }
    int64_t size() const { return size_; }

  private:
    std::shared_ptr<char> memory_;
    int64_t size_ = 0;
};

// Lays small pieces side by side in huge pages. A page is given back when all of its pieces are gone.
class MemoryArena {
  public:
    AlignedMemory allocate(int64_t size) {
        if (size >= huge_page_bytes) return AlignedMemory(size);
        if (chunk_.size() - used_ < size) {
            chunk_ = AlignedMemory(4 * huge_page_bytes);
            used_ = 0;
        }
        AlignedMemory piece(chunk_, used_, size);
        used_ += (size + 63) / 64 * 64;
        return piece;
    }

  private:
    AlignedMemory chunk_;
    int64_t used_ = 0;
};

}  // namespace paged_backend
