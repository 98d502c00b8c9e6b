// Memory of the kernel: aligned numbers, and large blocks in large pages.
#pragma once

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

constexpr int64_t CACHE_LINE = 64;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

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

// Many numbers, at first of any value, in large pages where the system has them. Rows are gathered from all over a sequence: with
// pages of 4 KiB nearly every one would cost a walk through the page tables, and the first touch of each page an interrupt.
template <class T> class LargeBuffer {
  public:
    explicit LargeBuffer(int64_t size) : data_(static_cast<T*>(::operator new[](size * sizeof(T), ALIGNMENT))) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        constexpr int64_t PAGE = int64_t(1) << 21;
        const int64_t address = reinterpret_cast<int64_t>(data_);
        const int64_t begin = round_up(address, PAGE), end = (address + size * int64_t(sizeof(T))) / PAGE * PAGE;
        if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    }
    LargeBuffer(const LargeBuffer&) = delete;
    LargeBuffer& operator=(const LargeBuffer&) = delete;
    ~LargeBuffer() { ::operator delete[](data_, ALIGNMENT); }
    T* get() { return data_; }

  private:
    static constexpr std::align_val_t ALIGNMENT{CACHE_LINE};
    T* data_;
};
