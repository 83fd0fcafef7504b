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

// The address sanitizer knows the bounds of what malloc gave, not of what is mapped.
#if defined(__linux__) && defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)
#define PAGED_BACKEND_MAPS_MEMORY 1
#else
#define PAGED_BACKEND_MAPS_MEMORY 0
#endif

namespace paged_backend {

constexpr int64_t huge_page_bytes = 2 << 20;

// A piece of memory, freed with its last part.
class AlignedMemory {
  public:
    AlignedMemory() = default;

    // Aligned to 64 bytes, not initialised. Throws std::bad_alloc.
    explicit AlignedMemory(int64_t size) : memory_(allocate(size)), size_(size) {}

    AlignedMemory(AlignedMemory&&) = default;
    AlignedMemory& operator=(AlignedMemory&&) = default;

    // Part of another piece, which lives as long as this one.
    AlignedMemory(const AlignedMemory& whole, int64_t offset, int64_t size)
        : memory_(whole.memory_, whole.data() + offset), size_(size) {}

    char* data() const { return memory_.get(); }
    int64_t size() const { return size_; }

  private:
    static std::shared_ptr<char> allocate(int64_t size) {
#if PAGED_BACKEND_MAPS_MEMORY
        // Pages of their own: malloc would hand out memory again that is in small pages already, and stays so.
        if (size >= huge_page_bytes) {
            const auto huge = static_cast<uintptr_t>(huge_page_bytes);
            const uintptr_t length = (static_cast<uintptr_t>(size) + huge - 1) / huge * huge;
            void* mapped = mmap(nullptr, length + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (mapped == MAP_FAILED) throw std::bad_alloc();
            const auto address = reinterpret_cast<uintptr_t>(mapped);
            const uintptr_t before = (huge - address % huge) % huge;
            if (before != 0) munmap(mapped, before);
            char* memory = static_cast<char*>(mapped) + before;
            munmap(memory + length, huge - before);
            madvise(memory, length, MADV_HUGEPAGE);  // a wish only
            return {memory, [length](char* unmapped) { munmap(unmapped, length); }};
        }
#endif
        const int64_t rounded = (size + 63) / 64 * 64;
        void* memory = std::aligned_alloc(64, static_cast<size_t>(rounded));
        if (memory == nullptr) throw std::bad_alloc();
        return {static_cast<char*>(memory), std::free};
    }

    std::shared_ptr<char> memory_;
    int64_t size_ = 0;
};

// Lays pieces side by side in huge pages, but the largest. A chunk is given back when all of its pieces are gone.
class MemoryArena {
  public:
    AlignedMemory allocate(int64_t size) {
        if (size >= chunk_bytes / 2) return AlignedMemory(size);
        if (chunk_.size() - used_ < size) {
            chunk_ = AlignedMemory(chunk_bytes);
            used_ = 0;
        }
        AlignedMemory piece(chunk_, used_, size);
        used_ += (size + 63) / 64 * 64;
        return piece;
    }

  private:
    static constexpr int64_t chunk_bytes = 16 * huge_page_bytes;

    AlignedMemory chunk_;
    int64_t used_ = 0;
};

}  // namespace paged_backend
