// Working memory for the kernels.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace smidgen {

// Floats aligned to a cache line, taken when first needed and kept. Their contents are lost when they grow.
class AlignedFloats {
public:
    AlignedFloats() = default;
    AlignedFloats(const AlignedFloats&) = delete;
    AlignedFloats& operator=(const AlignedFloats&) = delete;
    ~AlignedFloats() { std::free(data_); }

    // Makes room for at least so many. Raises std::bad_alloc.
    void reserve(int64_t floats) {
        if (floats <= capacity_) return;
        std::free(data_);
        data_ = nullptr;
        capacity_ = 0;
        const size_t wanted = static_cast<size_t>(floats) * sizeof(float);
        const size_t line = wanted < HUGE_PAGE ? 64 : HUGE_PAGE;
        const size_t bytes = std::max(line, (wanted + line - 1) / line * line);
        data_ = static_cast<float*>(std::aligned_alloc(line, bytes));
        if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        // Kernels touch many planes at once, each in pages of its own; with small pages most accesses would first wait
        // for an address to be looked up. Where the system refuses, all is as before.
        if (line == HUGE_PAGE) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        capacity_ = floats;
    }

    float* data() const { return data_; }

private:
    static constexpr size_t HUGE_PAGE = size_t{2} << 20;

    float* data_ = nullptr;
    int64_t capacity_ = 0;
};

inline bool is_aligned(const float* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; }

}  // namespace smidgen
