// A tensor of torch as the kernel meets it: any strides, in the kernel's precision or half of it.
#pragma once

#include <cstdint>
#include <cstring>

enum Precision : int64_t { FULL, BF16, FP16 };  // FULL: that of the calculation, float or double

// The fields and their order are those of `Tensor4` in tensors.py.
struct Tensor4 {
    void* data;
    int64_t precision;
    int64_t strides[4];  // in numbers: example, head, position, and within a row
};

inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float from_bf16(uint16_t half) { return float_of_bits(uint32_t(half) << 16); }

inline float from_fp16(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7FFF;
    const uint32_t scaled = bits_of_float(float_of_bits(rest << 13) * 0x1p112f);
    return float_of_bits(sign | (rest >= 0x7C00 ? 0x7F800000 | rest << 13 : scaled));
}

// Both round to the nearest, halfway to even, as torch does.
inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of_float(x);
    return x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_fp16(float x) {
    const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    // Below 2^-14 the last place stays 2^-24: adding 0.5 rounds there. Above, drop 13 bits and move the exponent.
    const uint32_t small = bits_of_float(float_of_bits(size) + 0.5f) - 0x3F000000;
    const uint32_t normal = (size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13;
    const uint32_t result = size > 0x7F800000 ? 0x7E00 : size >= 0x477FF000 ? 0x7C00 : size < 0x38800000 ? small : normal;
    return uint16_t(sign | result);
}

// A row for each position.
template <class T> struct Field {
    T* first;
    int64_t stride;
    T* operator[](int64_t position) const { return first + position * stride; }
};

// The rows of one sequence (example and head) of a tensor.
template <class T> class Rows {
    char* data;
    int64_t precision, row_stride, stride, size;

    template <class From, class Convert> void read_as(const char* row, T* to, Convert convert) const {
        const From* from = reinterpret_cast<const From*>(row);
        if (stride == 1)
            for (int64_t d = 0; d < size; ++d) to[d] = T(convert(from[d]));
        else
            for (int64_t d = 0; d < size; ++d) to[d] = T(convert(from[d * stride]));
    }

  public:
    Rows(const Tensor4& tensor, int64_t example, int64_t head, int64_t size)
        : precision(tensor.precision), row_stride(tensor.strides[2]), stride(tensor.strides[3]), size(size) {
        const int64_t offset = example * tensor.strides[0] + head * tensor.strides[1];
        data = static_cast<char*>(tensor.data) + offset * number_bytes();
    }

    // The rows themselves, where they are of the calculation's precision and contiguous.
    Field<T> in_place() const { return {reinterpret_cast<T*>(data), row_stride}; }

    int64_t number_bytes() const { return precision == FULL ? sizeof(T) : sizeof(uint16_t); }

    void read(int64_t position, T* to) const {
        const char* row = data + position * row_stride * number_bytes();
        if (precision == BF16) read_as<uint16_t>(row, to, from_bf16);
        else if (precision == FP16) read_as<uint16_t>(row, to, from_fp16);
        else read_as<T>(row, to, [](T x) { return x; });
    }

    // Ask for a row that will be read. Into the second cache: the first is too small for what comes.
    void ask(int64_t position) const {
        asm volatile("");  // without an effect, GCC drops the call of a function that only prefetches
        const char* row = data + position * row_stride * number_bytes();
        for (int64_t byte = 0; byte < size * number_bytes(); byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }

    // The rows written to are always contiguous in themselves.
    void write(int64_t position, const T* from) const {
        char* row = data + position * row_stride * number_bytes();
        uint16_t* half = reinterpret_cast<uint16_t*>(row);
        if (precision == BF16) for (int64_t d = 0; d < size; ++d) half[d] = to_bf16(float(from[d]));
        else if (precision == FP16) for (int64_t d = 0; d < size; ++d) half[d] = to_fp16(float(from[d]));
        else std::memcpy(row, from, size * sizeof(T));
    }
};
