// Angular hashing: the argmax of [x R ; -x R] for each factor of the number of buckets, without keeping the products.
#pragma once

#include <limits>
#include <memory>

#include "memory.h"
#include "parallel.h"
#include "simd.h"
#include "tensor.h"

// What a call is told: the fields and their order are those of `_HashProblem` in hashing.py.
struct HashProblem {
    Tensor4 x;                 // (batch, heads, length, width)
    const void* rotations;     // (batch, heads, width, rounds, columns): half of the sum of the factors
    int64_t rotation_strides[5];
    const int64_t* factors;
    int64_t* buckets;          // (batch, heads, rounds, length), to be filled
    int64_t batch, heads, length, width, rounds, num_factors, threads;
};

constexpr int64_t SLAB = 1024;  // rows that one thread hashes before it takes others

// The scratch of one thread: some rows of x by columns, and their products with a few columns of the rotations.
template <class T> class Hasher {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    using IVec = typename S::IVec;
    using Int = typename S::Int;
    static constexpr int64_t GROUP = COLUMNS * S::N;  // rows of x at a time, as many as a product holds in registers

    const HashProblem& problem;
    const int64_t width;  // rounded up to whole vectors
    int64_t columns = 0;  // of the rotation of one round
    Buffer<T> rows, x, products, rotations;
    Vec high[COLUMNS], low[COLUMNS];
    IVec high_at[COLUMNS], low_at[COLUMNS];

    static int64_t sum_of_halves(const HashProblem& problem) {
        int64_t columns = 0;
        for (int64_t f = 0; f < problem.num_factors; ++f) columns += problem.factors[f] / 2;
        return columns;
    }

    // Call work(round, factor, first column of the factor's, how many, where they lie) for a few columns at a time.
    template <class Work> void each_columns(Work work) {
        T* at = rotations.get();
        for (int64_t round = 0; round < problem.rounds; ++round)
            for (int64_t f = 0; f < problem.num_factors; ++f) {
                const int64_t half = problem.factors[f] / 2;
                for (int64_t column = 0, count; column < half; column += count, at += count * problem.width) {
                    count = std::min<int64_t>(ROWS, half - column);
                    work(round, f, column, count, at);
                }
            }
    }

    // Copy the rotations such that the columns of one product lie side by side.
    void pack(int64_t example, int64_t head) {
        const int64_t* strides = problem.rotation_strides;
        const T* from = static_cast<const T*>(problem.rotations) + example * strides[0] + head * strides[1];
        int64_t before = 0;  // columns of the factors before this one
        each_columns([&](int64_t round, int64_t f, int64_t column, int64_t count, T* to) {
            if (f == 0 && column == 0) before = 0;
            for (int64_t k = 0; k < problem.width; ++k)
                for (int64_t i = 0; i < count; ++i)
                    to[k * count + i] = from[k * strides[2] + round * strides[3] + (before + column + i) * strides[4]];
            if (column + count == problem.factors[f] / 2) before += column + count;
        });
    }

    void compare(const T* product, Int column) {
        for (int v = 0; v < COLUMNS; ++v) {
            const Vec value = S::load(product + v * S::N);
            const IVec above = value > high[v], below = value < low[v];
            high[v] = above ? value : high[v];
            low[v] = below ? value : low[v];
            high_at[v] = above ? S::all(column) : high_at[v];
            low_at[v] = below ? S::all(column) : low_at[v];
        }
    }

    // Rows [begin, end) of one sequence, at most GROUP.
    void group(const Rows<T>& from, int64_t begin, int64_t end, int64_t* buckets) {
        for (int64_t i = begin; i < end; ++i) from.read(i, rows.get() + (i - begin) * width);
        for (int64_t j = 0; j < GROUP; j += S::N)
            for (int64_t d = 0; d < width; d += S::N)
                transpose_square(rows.get() + j * width + d, width, x.get() + d * GROUP + j, GROUP);
        int64_t radix = 1;
        each_columns([&](int64_t round, int64_t f, int64_t column, int64_t count, const T* rotation) {
            int64_t* bucket = buckets + round * problem.length;
            if (column == 0) {
                if (f == 0) {
                    radix = 1;
                    std::fill(bucket + begin, bucket + end, 0);
                }
                for (int v = 0; v < COLUMNS; ++v) {
                    low[v] = S::all(std::numeric_limits<T>::infinity()), high[v] = -low[v];
                    high_at[v] = low_at[v] = IVec{};
                }
            }
            product<T, false>(count, COLUMNS, problem.width, rotation, 1, count, x.get(), GROUP, products.get(), GROUP);
            for (int64_t i = 0; i < count; ++i) compare(products.get() + i * GROUP, Int(column + i));
            const int64_t half = problem.factors[f] / 2;
            if (column + count < half) return;
            for (int v = 0; v < COLUMNS; ++v) {
                // An equal magnitude goes to the positive half, whose indices come first.
                const IVec digit = high[v] >= -low[v] ? high_at[v] : low_at[v] + S::all(Int(half));
                for (int64_t i = v * S::N; i < std::min<int64_t>((v + 1) * S::N, end - begin); ++i)
                    bucket[begin + i] += radix * digit[i - v * S::N];
            }
            radix *= problem.factors[f];
        });
    }

  public:
    explicit Hasher(const HashProblem& problem)
        : problem(problem), width(round_up(problem.width, S::N)), columns(sum_of_halves(problem)), rows(GROUP * width),
          x(width * GROUP), products(ROWS * GROUP), rotations(problem.rounds * columns * problem.width) {}

    void hash(int64_t sequence, int64_t begin, int64_t end) {
        const int64_t example = sequence / problem.heads, head = sequence % problem.heads;
        pack(example, head);
        const Rows<T> from(problem.x, example, head, problem.width);
        for (int64_t i = begin; i < end; i += GROUP)
            group(from, i, std::min(i + GROUP, end), problem.buckets + sequence * problem.rounds * problem.length);
    }
};

// Each row is hashed by itself: how rows are spread over threads changes no result.
template <class T> void hash_vectors(const HashProblem& problem) {
    const int64_t slabs = (problem.length + SLAB - 1) / SLAB;
    std::vector<std::unique_ptr<Hasher<T>>> hashers(problem.threads);
    parallel_for(problem.batch * problem.heads * slabs, problem.threads, [&](int64_t worker, int64_t n) {
        if (!hashers[worker]) hashers[worker] = std::make_unique<Hasher<T>>(problem);
        const int64_t begin = n % slabs * SLAB;
        hashers[worker]->hash(n / slabs, begin, std::min(begin + SLAB, problem.length));
    });
}
