// Local attention: one block of queries against one block of the keys that it sees. A position sees its chunk and some chunks beside
// it: one range of positions, whose ends never go back from one position to the next.
//
// Scores lie key by key, a vector holding some queries' scores with one key. So the sums of a softmax are sums of vectors, and
// keys and values are read row by row; only queries (and the gradients of their outputs) are transposed, once for a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "dropout.h"
#include "memory.h"
#include "simd.h"
#include "tensor.h"

namespace local {

// What a call is told: the fields and their order are those of `_Problem` in ops/local_attention/native.py.
struct Problem {
    Tensor4 q, k, v;         // (batch, heads, length, width), the same, (batch, heads, length, width_v)
    const uint8_t* padding;  // (batch, length), or null
    int64_t batch, heads, length, width, width_v;
    int64_t chunk_length, before, after, causal;
    int64_t threads;
    double scale;
    double keep_factor;   // 1 / (1 - p), 1 without dropout
    int64_t drop_below;   // a pair is dropped if its hash is below p * 2^32; 0 without dropout
    int64_t dropout_seed;

    int64_t first_seen(int64_t position) const { return std::max<int64_t>(0, position / chunk_length - before) * chunk_length; }
    int64_t seen_end(int64_t position) const {
        return causal ? position + 1 : std::min(length, (position / chunk_length + after + 1) * chunk_length);
    }
};

constexpr int64_t QUERIES = 64;  // positions of a block of queries
constexpr int64_t KEYS = 128;    // positions of a block of keys

// One example and head.
template <class T> struct Sequence {
    const Problem& problem;
    const int64_t index;
    const uint8_t* padding;

    Sequence(const Problem& problem, int64_t index)
        : problem(problem), index(index),
          padding(problem.padding ? problem.padding + index / problem.heads * problem.length : nullptr) {}

    Rows<T> rows(const Tensor4& tensor, int64_t width) const {
        return Rows<T>(tensor, index / problem.heads, index % problem.heads, width);
    }
    bool is_padding(int64_t position) const { return padding && padding[position]; }

    // Read rows [begin, end), zeros for padding, as rows of `width`.
    void read(const Rows<T>& from, int64_t begin, int64_t end, T* to, int64_t width) const {
        for (int64_t i = begin; i < end; ++i, to += width) {
            if (is_padding(i)) std::memset(to, 0, width * sizeof(T));
            else from.read(i, to);
        }
    }
};

// Rows of keys or values side by side, in the calculation's precision. Of two windows that overlap, the second reads what is new.
template <class T> class Stretch {
    static constexpr int64_t CAPACITY = 4 * KEYS;
    const int64_t width;  // rounded up to whole vectors; what is beyond the tensor's stays zero
    Buffer<T> rows;
    int64_t begin = 0, end = 0, origin = 0;  // it holds the rows of [begin, end); `origin`: the position of the first place

  public:
    explicit Stretch(int64_t width) : width(width), rows(CAPACITY * width) {}

    void clear() { begin = end = origin = 0; }

    // The rows of [from, to), at most KEYS of them.
    const T* load(const Sequence<T>& sequence, const Rows<T>& source, int64_t from, int64_t to) {
        if (from < begin || from > end) begin = end = origin = from;
        if (to - origin > CAPACITY) {
            std::memmove(rows.get(), rows.get() + (from - origin) * width, std::max<int64_t>(0, end - from) * width * sizeof(T));
            begin = origin = from;
        }
        if (to > end) {
            sequence.read(source, end, to, rows.get() + (end - origin) * width, width);
            end = to;
        }
        return rows.get() + (from - origin) * width;
    }
};

// The scratch of one thread.
template <class T> struct Tile {
    using S = Simd<T>;
    using Int = typename S::Int;
    using Vec = typename S::Vec;
    using IVec = typename S::IVec;
    using UVec = typename S::UVec;
    // Queries that are worked on together: whole vectors, and whole groups of rows of a product.
    static constexpr int64_t CELL = S::N > ROWS ? S::N : ROWS;

    const Problem& problem;
    const int64_t width, width_v;  // those of the problem, rounded up to whole vectors
    Buffer<T> q, q_columns, scores;
    Stretch<T> k_rows, v_rows;
    const T *k = nullptr, *v = nullptr;
    const Sequence<T>* sequence = nullptr;
    int64_t query_begin = 0, queries = 0, key_begin = 0, keys = 0;

    explicit Tile(const Problem& problem)
        : problem(problem), width(round_up(problem.width, S::N)), width_v(round_up(problem.width_v, S::N)), q(QUERIES * width),
          q_columns(width * QUERIES), scores(KEYS * QUERIES), k_rows(width), v_rows(width_v) {}

    void begin(const Sequence<T>& of) {
        sequence = &of;
        k_rows.clear();
        v_rows.clear();
    }

    void load_queries(int64_t begin, int64_t end) {
        query_begin = begin, queries = end - begin;
        sequence->read(sequence->rows(problem.q, problem.width), begin, end, q.get(), width);
        const T scale = T(problem.scale);
        for (int64_t x = 0; x < queries * width; ++x) q.get()[x] *= scale;
        transpose(q.get(), width, q_columns.get());
        const uint64_t hash = problem.drop_below ? hash_sequence(problem.dropout_seed, sequence->index) : 0;
        for (int64_t i = 0; i < QUERIES; ++i) {
            const int64_t position = begin + std::min(i, queries - 1);
            first[i] = problem.first_seen(position), last[i] = problem.seen_end(position);
            const bool sees = i < queries && !sequence->is_padding(position);
            visible_first[i] = Int(sees ? first[i] : 0), visible_last[i] = Int(sees ? last[i] : 0);
            if (problem.drop_below) query_hash[i] = typename S::UInt(hash_query(hash, position));
        }
    }

    void load_keys(int64_t begin, int64_t end) {
        key_begin = begin, keys = end - begin;
        k = k_rows.load(*sequence, sequence->rows(problem.k, problem.width), begin, end);
        v = v_rows.load(*sequence, sequence->rows(problem.v, problem.width_v), begin, end);
        for (int64_t j = 0, a = 0, b = 0; j < keys; j += ROWS) {
            while (a < queries && last[a] <= key_begin + j) ++a;
            while (b < queries && first[b] < key_begin + std::min(keys, j + ROWS)) ++b;
            seen_from[j / ROWS] = a / CELL * CELL;
            seen_to[j / ROWS] = a < b ? round_up(b, CELL) : a / CELL * CELL;
        }
    }

    // Ask for what the next block will read in place of the queries [a, a + a vector). Asked for all at once, the rows would queue up.
    void ask_for_next(int64_t a, std::initializer_list<const Rows<T>*> others) const {
        const Rows<T> rows_q = sequence->rows(problem.q, problem.width), rows_k = sequence->rows(problem.k, problem.width);
        const Rows<T> rows_v = sequence->rows(problem.v, problem.width_v);
        const int64_t query = query_begin + queries + a, key = keys_end() + a;
        for (int64_t i = query; i < std::min(query + S::N, problem.length); ++i) {
            rows_q.ask(i);
            for (const Rows<T>* rows : others) rows->ask(i);
        }
        for (int64_t j = key; j < std::min(key + S::N, problem.length); ++j) {
            rows_k.ask(j);
            rows_v.ask(j);
        }
    }

    // Call work(first key, number of keys, first query, end of queries) for a few keys at a time; the queries that may see one of
    // them, in whole cells.
    template <class Work> void each_keys(Work work) const {
        for (int64_t j = 0; j < keys; j += ROWS)
            if (seen_from[j / ROWS] < seen_to[j / ROWS])
                work(j, std::min<int64_t>(ROWS, keys - j), seen_from[j / ROWS], seen_to[j / ROWS]);
    }

    // Call work(first query, first key, end of keys) for a vector of queries at a time: all keys that `each_keys` meets with them.
    template <class Work> void each_vector(Work work) const {
        for (int64_t a = 0; a < queries; a += S::N) {
            const int64_t cell = a / CELL * CELL, cell_end = std::min(cell + CELL, queries);
            const int64_t from = std::max<int64_t>(0, first[cell] - key_begin) / ROWS * ROWS;
            const int64_t to = std::min(keys, round_up(std::max<int64_t>(0, last[cell_end - 1] - key_begin), ROWS));
            if (from < to) work(a, from, to);
        }
    }

    // to[key][query] = rows[key] . columns[query]
    void multiply(const T* rows, int64_t row_width, const T* columns, T* to) const {
        each_keys([&](int64_t j, int64_t count, int64_t a, int64_t b) {
            product<T, false>(count, (b - a) / S::N, row_width, rows + j * row_width, row_width, 1, columns + a, QUERIES,
                              to + j * QUERIES + a, QUERIES);
        });
    }

    // to[query] += sum over keys of what[key][query] rows[key]
    void add_to_queries(const T* what, const T* rows, int64_t row_width, T* to) const {
        for (int64_t a = 0; a < queries; a += ROWS) {
            const int64_t count = std::min<int64_t>(ROWS, queries - a);
            const int64_t from = std::max<int64_t>(0, first[a] - key_begin), end = std::min(keys, last[a + count - 1] - key_begin);
            if (from >= end) continue;
            product<T, true>(count, row_width / S::N, end - from, what + from * QUERIES + a, 1, QUERIES, rows + from * row_width,
                             row_width, to + a * row_width, row_width);
        }
    }

    // Call work(key, visible) for keys [from, to): `visible(x)` has the lanes of x, one for each of the queries [a, a + a vector), that
    // see the key, and 0 in the others. Most vectors are seen as a whole.
    template <class Work> void each_key(int64_t a, int64_t from, int64_t to, Work work) const {
        const IVec first_a = S::load(visible_first + a), last_a = S::load(visible_last + a);
        const auto in_part = [&](int64_t begin, int64_t end) {
            for (int64_t j = begin; j < end; ++j) {
                const IVec position = S::all(Int(key_begin + j));
                const IVec seen = sequence->is_padding(key_begin + j) ? IVec{} : (position >= first_a) & (position < last_a);
                work(j, [=](Vec x, Vec otherwise) { return seen ? x : otherwise; });
            }
        };
        int64_t whole = to, whole_end = to;
        if (a + S::N <= queries && !sequence->padding) {
            whole = std::clamp(first[a + S::N - 1] - key_begin, from, to);
            whole_end = std::clamp(last[a] - key_begin, whole, to);
        }
        in_part(from, whole);
        for (int64_t j = whole; j < whole_end; ++j) work(j, [](Vec x, Vec) { return x; });
        in_part(whole_end, to);
    }

    // Dropout's factors of key j for the queries [a, a + a vector).
    Vec keep(int64_t a, int64_t j) const {
        const UVec hash = S::template load_as<UVec>(query_hash + a);
        return keep_factors<T>(hash, S::all(typename S::UInt(key_begin + j)), problem.drop_below, problem.keep_factor);
    }

    // columns[d][i] = rows[i][d], for all places of a block of queries.
    void transpose(const T* rows, int64_t row_width, T* columns) const {
        for (int64_t i = 0; i < queries; i += S::N)
            for (int64_t d = 0; d < row_width; d += S::N)
                transpose_square(rows + i * row_width + d, row_width, columns + d * QUERIES + i, QUERIES);
    }

    // The range of the keys that the block sees.
    int64_t first_key() const { return first[0]; }
    int64_t keys_end() const { return last[queries - 1]; }

  private:
    int64_t first[QUERIES], last[QUERIES];
    Int visible_first[QUERIES], visible_last[QUERIES];  // nothing for padding and beyond the block
    typename S::UInt query_hash[QUERIES];
    int64_t seen_from[KEYS / ROWS], seen_to[KEYS / ROWS];
};

}  // namespace local
