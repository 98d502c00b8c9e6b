// Vectors of the machine's width in GCC's and Clang's vector extensions, exp on them, and a register-blocked product of
// small matrices. Nothing here knows of attention.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int ROWS = 8;  // rows of a product that are held in registers: 8 x 3 of 32, or 4 x 3 of 16
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
constexpr int ROWS = 4;
#else
constexpr int VECTOR_BYTES = 16;
constexpr int ROWS = 4;
#endif
constexpr int COLUMNS = 3;  // vectors of a product that are held in registers, for each row

template <class T> struct Lanes;

template <> struct Lanes<float> {
    using Int = int32_t;
    using UInt = uint32_t;
    static constexpr int MANTISSA = 23, BIAS = 127, TERMS = 7;
    static constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    static constexpr float LEAST = -87.0f;  // exp of less is below the smallest normal number: taken as 0
};

template <> struct Lanes<double> {
    using Int = int64_t;
    using UInt = uint64_t;
    static constexpr int MANTISSA = 52, BIAS = 1023, TERMS = 13;
    static constexpr double ROUNDER = 6755399441055744.0;
    static constexpr double LN2_HIGH = 6.93145751953125e-1, LN2_LOW = 1.42860682030941723212e-6;
    static constexpr double LEAST = -708.0;
};

template <class T> struct Simd {
    using Int = typename Lanes<T>::Int;
    using UInt = typename Lanes<T>::UInt;
    static constexpr int N = VECTOR_BYTES / sizeof(T);
    typedef T Vec __attribute__((vector_size(VECTOR_BYTES)));
    typedef Int IVec __attribute__((vector_size(VECTOR_BYTES)));
    typedef UInt UVec __attribute__((vector_size(VECTOR_BYTES)));

    template <class V, class S> static inline V load_as(const S* from) {
        V result;
        std::memcpy(&result, from, sizeof(V));
        return result;
    }
    static inline Vec load(const T* from) { return load_as<Vec>(from); }
    static inline IVec load(const Int* from) { return load_as<IVec>(from); }
    static inline void store(T* to, Vec x) { std::memcpy(to, &x, sizeof(Vec)); }
    static inline Vec all(T x) { return Vec{} + x; }
    static inline IVec all(Int x) { return IVec{} + x; }
    static inline UVec all(UInt x) { return UVec{} + x; }
    static inline IVec steps() { return steps(Numbers{}); }

    // x[from], y[from], x[from + 1], y[from + 1], ...: FROM is 0 or N / 2.
    template <int FROM> static inline Vec interleave(Vec x, Vec y) { return interleave<FROM>(x, y, Numbers{}); }

    static inline T sum(Vec x) { return fold<N / 2>(x, [](Vec a, Vec b) { return a + b; }); }
    static inline T largest(Vec x) { return fold<N / 2>(x, [](Vec a, Vec b) { return a > b ? a : b; }); }

    // exp(x) for x <= 0, to about one unit in the last place; NaN stays NaN.
    static inline Vec exp(Vec x) {
        using L = Lanes<T>;
        const IVec nothing = x < all(L::LEAST);
        const Vec rounded = x * all(T(1.44269504088896340736)) + all(L::ROUNDER);
        const Vec n = rounded - all(L::ROUNDER);
        const Vec rest = (x - n * all(L::LN2_HIGH)) - n * all(L::LN2_LOW);
        constexpr auto series_of = inverse_factorials();
        Vec series = all(series_of.term[L::TERMS]);
        _Pragma("GCC unroll 16")
        for (int k = L::TERMS - 1; k >= 0; --k) series = series * rest + all(series_of.term[k]);
        // The low bits of `rounded` are n, those above the mantissa fall out of the shift.
        const IVec power = ((IVec)rounded << L::MANTISSA) + all(Int(L::BIAS) << L::MANTISSA);
        return nothing ? Vec{} : series * (Vec)power;
    }

  private:
    using Numbers = std::make_integer_sequence<int, N>;
    template <int... I> static inline IVec steps(std::integer_sequence<int, I...>) { return IVec{I...}; }

#if defined(__clang__)
    template <int FROM, int... I> static inline Vec interleave(Vec x, Vec y, std::integer_sequence<int, I...>) {
        return __builtin_shufflevector(x, y, (FROM + I / 2 + I % 2 * N)...);
    }
    template <int APART, int... I> static inline Vec exchange(Vec x, std::integer_sequence<int, I...>) {
        return __builtin_shufflevector(x, x, (I ^ APART)...);
    }
#else
    template <int FROM, int... I> static inline Vec interleave(Vec x, Vec y, std::integer_sequence<int, I...>) {
        return __builtin_shuffle(x, y, IVec{(FROM + I / 2 + I % 2 * N)...});
    }
    template <int APART, int... I> static inline Vec exchange(Vec x, std::integer_sequence<int, I...>) {
        return __builtin_shuffle(x, IVec{(I ^ APART)...});
    }
#endif

    // Join both halves of the lanes, then both quarters of that, and so on.
    template <int APART, class Join> static inline T fold(Vec x, Join join) {
        x = join(x, exchange<APART>(x, Numbers{}));
        if constexpr (APART > 1) return fold<APART / 2>(x, join);
        else return x[0];
    }

    struct Series {
        T term[Lanes<T>::TERMS + 1];
    };
    static constexpr Series inverse_factorials() {
        Series series{};
        double factorial = 1;
        for (int k = 0; k <= Lanes<T>::TERMS; ++k) {
            series.term[k] = T(1 / factorial);
            factorial *= k + 1;
        }
        return series;
    }
};

// The sum of a[i] * b[i].
template <class T> inline T dot(const T* a, const T* b, int64_t size) {
    using S = Simd<T>;
    typename S::Vec sum{};
    int64_t i = 0;
    for (; i + S::N <= size; i += S::N) sum += S::load(a + i) * S::load(b + i);
    T result = S::sum(sum);
    for (; i < size; ++i) result += a[i] * b[i];
    return result;
}

// C[M x NV vectors] (+)= A[M x depth] B[depth x NV vectors]; A's element (i, k) is a[i * a_row + k * a_column].
template <class T, int M, int NV, bool ADD>
static inline void product_block(long depth, const T* a, long a_row, long a_column, const T* b, long b_row, T* c, long c_row) {
    using S = Simd<T>;
    typename S::Vec sum[M][NV];
    _Pragma("GCC unroll 8")
    for (int i = 0; i < M; ++i)
        _Pragma("GCC unroll 8")
        for (int j = 0; j < NV; ++j) sum[i][j] = ADD ? S::load(c + i * c_row + j * S::N) : typename S::Vec{};
    for (long k = 0; k < depth; ++k) {
        typename S::Vec right[NV];
        _Pragma("GCC unroll 8")
        for (int j = 0; j < NV; ++j) right[j] = S::load(b + k * b_row + j * S::N);
        _Pragma("GCC unroll 8")
        for (int i = 0; i < M; ++i) {
            const typename S::Vec left = S::all(a[i * a_row + k * a_column]);
            _Pragma("GCC unroll 8")
            for (int j = 0; j < NV; ++j) sum[i][j] += left * right[j];
        }
    }
    _Pragma("GCC unroll 8")
    for (int i = 0; i < M; ++i)
        _Pragma("GCC unroll 8")
        for (int j = 0; j < NV; ++j) S::store(c + i * c_row + j * S::N, sum[i][j]);
}

template <class T, int M, bool ADD>
static void product_rows(long vectors, long depth, const T* a, long a_row, long a_column, const T* b, long b_row, T* c, long c_row) {
    constexpr int N = Simd<T>::N;
    long j = 0;
    while (j < vectors) {
        const long left = vectors - j;
        // Four as two and two: three and one would wait for the multiplications.
        const long now = left == 4 || left == 2 ? 2 : left >= COLUMNS ? COLUMNS : 1;
        const T* right = b + j * N;
        T* to = c + j * N;
        if (now == 3) product_block<T, M, 3, ADD>(depth, a, a_row, a_column, right, b_row, to, c_row);
        else if (now == 2) product_block<T, M, 2, ADD>(depth, a, a_row, a_column, right, b_row, to, c_row);
        else product_block<T, M, 1, ADD>(depth, a, a_row, a_column, right, b_row, to, c_row);
        j += now;
    }
}

// The same for 1 <= rows <= ROWS and any number of vectors.
template <class T, bool ADD>
static inline void product(long rows, long vectors, long depth, const T* a, long a_row, long a_column, const T* b, long b_row, T* c,
                           long c_row) {
    switch (rows) {
#define CASE(M) \
    case M: return product_rows<T, M, ADD>(vectors, depth, a, a_row, a_column, b, b_row, c, c_row)
        CASE(1); CASE(2); CASE(3); CASE(4);
#if defined(__AVX512F__)
        CASE(5); CASE(6); CASE(7); CASE(8);
#endif
#undef CASE
    }
}

// to[column][row] = from[row][column] for a square of N x N numbers.
template <class T> static inline void transpose_square(const T* from, long from_row, T* to, long to_row) {
    using S = Simd<T>;
    constexpr int N = S::N;
    typename S::Vec x[N], y[N];
    _Pragma("GCC unroll 16")
    for (int i = 0; i < N; ++i) x[i] = S::load(from + i * from_row);
    // Interleaving rows i and i + N / 2, log2(N) times, moves row i's element k to row k's place i.
    _Pragma("GCC unroll 4")
    for (int done = 1; done < N; done *= 2) {
        _Pragma("GCC unroll 8")
        for (int i = 0; i < N / 2; ++i) {
            y[2 * i] = S::template interleave<0>(x[i], x[i + N / 2]);
            y[2 * i + 1] = S::template interleave<N / 2>(x[i], x[i + N / 2]);
        }
        _Pragma("GCC unroll 16")
        for (int i = 0; i < N; ++i) x[i] = y[i];
    }
    _Pragma("GCC unroll 16")
    for (int i = 0; i < N; ++i) S::store(to + i * to_row, x[i]);
}
