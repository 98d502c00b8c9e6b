// Memory of the kernel: aligned numbers, and large blocks in large pages.
#pragma once

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

constexpr int64_t CACHE_LINE = 64;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Ask for large pages where memory is still untouched. Rows are gathered from all over a sequence: with pages of 4 KiB nearly every
// row would cost a walk through the page tables, and the first touch of each page an interrupt.
inline void prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t PAGE = int64_t(1) << 21;
    const int64_t begin = round_up(reinterpret_cast<int64_t>(data), PAGE);
    const int64_t end = (reinterpret_cast<int64_t>(data) + bytes) / PAGE * PAGE;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// Numbers at an address that vectors like; zero at first.
template <class T> class Buffer {
  public:
    explicit Buffer(int64_t size) : data_(new (std::align_val_t(CACHE_LINE)) T[size]()) {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { ::operator delete[](data_, std::align_val_t(CACHE_LINE)); }
    T* get() { return data_; }

  private:
    T* data_;
};

// Many numbers, at first of any value.
template <class T> class LargeBuffer {
  public:
    explicit LargeBuffer(int64_t size) : data_(static_cast<T*>(::operator new[](size * sizeof(T), ALIGNMENT))) {
        prefer_large_pages(data_, size * sizeof(T));
    }
    LargeBuffer(const LargeBuffer&) = delete;
    LargeBuffer& operator=(const LargeBuffer&) = delete;
    ~LargeBuffer() { ::operator delete[](data_, ALIGNMENT); }
    T* get() { return data_; }

  private:
    static constexpr std::align_val_t ALIGNMENT{CACHE_LINE};
    T* data_;
};
