// One block of sorted queries against one block of sorted keys: gathering their rows, scores, and who sees whom.
#pragma once

#include <cmath>
#include <limits>

#include "layout.h"
#include "parallel.h"
#include "simd.h"

constexpr int64_t QUERIES = 64;   // places of a block of queries
constexpr int64_t KEYS = 128;     // and of keys
constexpr int64_t CELL_BYTES = 64;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du & 0xFFFFFFFFu;
    x = (x ^ (x >> 15)) * 0x846CA68Bu & 0xFFFFFFFFu;
    return x ^ (x >> 16);
}

// The hash of reformer_lab.ops.random.keep_pairs, up to the query: of (seed, sequence), then of the query's position.
inline uint64_t hash_sequence(const Problem& problem, int64_t sequence) {
    const uint64_t seed = uint64_t(problem.dropout_seed) & 0xFFFFFFFFu;
    return mix((uint64_t(sequence) * 0x9E3779B1u + seed) & 0xFFFFFFFFu);
}
inline uint64_t hash_query(uint64_t sequence_hash, int64_t position) {
    return mix(sequence_hash ^ (uint64_t(position) * 0x85EBCA6Bu & 0xFFFFFFFFu));
}
inline uint64_t hash_key(uint64_t query_hash, int64_t position) {
    return mix(query_hash ^ (uint64_t(position) * 0xC2B2AE35u & 0xFFFFFFFFu));
}

// One sequence (example and head) and its rounds.
template <class T> struct Sequence {
    using Int = typename Lanes<T>::Int;
    const Problem& problem;
    int64_t index;
    const T* q;
    const T* v;
    std::vector<Round<Int>> rounds;
    std::vector<T> inverse_length;  // 1 / |x|, and 0 for the zero vector
    uint64_t hash;

    Sequence(const Problem& problem, int64_t index, int64_t threads)
        : problem(problem), index(index), q(static_cast<const T*>(problem.qk) + index * problem.length * problem.width),
          v(static_cast<const T*>(problem.v) + index * problem.length * problem.width_v), rounds(problem.rounds),
          inverse_length(problem.length), hash(hash_sequence(problem, index)) {
        parallel_for(problem.rounds, threads, [&](int64_t, int64_t r) { rounds[r] = make_round<Int>(problem, index, r); });
        for (int64_t i = 0; i < problem.length; ++i) {
            const T square = dot(q + i * problem.width, q + i * problem.width, problem.width);
            inverse_length[i] = square == T(0) ? T(0) : T(1) / std::sqrt(square);
        }
    }

    bool is_padding(int64_t position) const {
        return problem.padding && problem.padding[index / problem.heads * problem.length + position];
    }
    T keep_self(int64_t position) const {
        const bool kept = int64_t(hash_key(hash_query(hash, position), position)) >= problem.drop_below;
        return kept ? T(problem.keep_factor) : T(0);
    }

    static T dot(const T* a, const T* b, int64_t size) {
        using S = Simd<T>;
        typename S::Vec sum{};
        int64_t i = 0;
        for (; i + S::N <= size; i += S::N) sum += S::load(a + i) * S::load(b + i);
        T result = S::sum(sum);
        for (; i < size; ++i) result += a[i] * b[i];
        return result;
    }
};

// The scratch of one thread: rows of a block of queries, of a block of keys, and the scores between them.
template <class T> struct Tile {
    using S = Simd<T>;
    using Int = typename S::Int;
    using Vec = typename S::Vec;
    using IVec = typename S::IVec;
    using UVec = typename S::UVec;
    static constexpr int64_t CELL = CELL_BYTES / sizeof(T) > ROWS ? CELL_BYTES / sizeof(T) : ROWS;
    // One vector more than there are keys, so that the rows of a column do not share a set of the cache.
    static constexpr int64_t STRIDE = KEYS + CELL;

    const int64_t width, width_v;  // those of the problem, rounded up to whole vectors
    Buffer<T> q, k, v, k_columns, v_columns, scores, weights;
    Buffer<Int> query_code, key_code, key_position;
    int64_t query_position[QUERIES], first[QUERIES], last[QUERIES];
    uint64_t query_hash[QUERIES];
    int64_t query_place = 0, queries = 0, key_place = 0, keys = 0;
    const Sequence<T>* sequence = nullptr;
    int64_t round = 0, earlier = 0;

    explicit Tile(const Problem& problem)
        : width(round_up(problem.width, CELL)), width_v(round_up(problem.width_v, CELL)), q(QUERIES * width), k(KEYS * width),
          v(KEYS * width_v), k_columns(width * STRIDE), v_columns(width_v * STRIDE), scores(QUERIES * STRIDE),
          weights(QUERIES * STRIDE), query_code(problem.rounds * QUERIES), key_code(problem.rounds * STRIDE),
          key_position(STRIDE) {}

    void load_queries(const Sequence<T>& of, int64_t in_round, int64_t begin, int64_t end) {
        sequence = &of, round = in_round, query_place = begin, queries = end - begin;
        const Problem& problem = of.problem;
        const auto& sorted = of.rounds[round];
        earlier = problem.corrected ? round : 0;
        for (int64_t i = 0; i < queries; ++i) {
            const int64_t position = sorted.order[begin + i];
            query_position[i] = position;
            first[i] = sorted.first[begin + i];
            last[i] = sorted.last[begin + i];
            std::memcpy(q.get() + i * width, of.q + position * problem.width, problem.width * sizeof(T));
            for (int64_t e = 0; e < earlier; ++e)
                query_code.get()[e * QUERIES + i] = of.rounds[e].code[position] + Int(problem.after);
            if (problem.drop_below) query_hash[i] = hash_query(of.hash, position);
        }
    }

    // Ask for a row that the next block gathers, the one of query i there: rows lie anywhere in the sequence, and a processor
    // that meets them when it needs them waits for the memory half of the time. Asked for all at once they would queue up.
    void prefetch(int64_t i, const T* rows, int64_t row_width) const {
        const auto& order = sequence->rounds[round].order;
        const uint64_t place = query_place + QUERIES + i;
        if (place >= order.size()) return;
        for (int64_t d = 0; d < row_width; d += CELL_BYTES / sizeof(T))
            __builtin_prefetch(rows + order[place] * row_width + d, 0, 3);
    }

    // The rows of keys [begin, end) too; `backward` also wants the values by columns.
    void load_keys(int64_t begin, int64_t end, bool backward) {
        key_place = begin, keys = end - begin;
        const Problem& problem = sequence->problem;
        const auto& order = sequence->rounds[round].order;
        const T scale = T(problem.logit_scale);
        for (int64_t j = 0; j < keys; ++j) {
            const int64_t position = order[begin + j];
            key_position.get()[j] = Int(position);
            const T* from = sequence->q + position * problem.width;
            const T factor = sequence->inverse_length[position] * scale;
            T* to = k.get() + j * width;
            for (int64_t d = 0; d < problem.width; ++d) to[d] = from[d] * factor;
            std::memcpy(v.get() + j * width_v, sequence->v + position * problem.width_v, problem.width_v * sizeof(T));
        }
        for (int64_t e = 0; e < earlier; ++e) {
            const Int* code = sequence->rounds[e].code.data();
            Int* to = key_code.get() + e * STRIDE;
            for (int64_t j = 0; j < keys; ++j) to[j] = code[key_position.get()[j]];
        }
        transpose(k.get(), width, k_columns.get());
        if (backward) transpose(v.get(), width_v, v_columns.get());
    }

    // The columns that rows [a, b) of queries may see, in whole cells; none if they end before they begin.
    void columns(int64_t a, int64_t b, int64_t& begin, int64_t& end) const {
        begin = std::max<int64_t>(0, first[a] - key_place) / CELL * CELL;
        end = round_up(std::max<int64_t>(0, std::min(keys, last[b - 1] - key_place)), CELL);
    }

    // Which of the keys [j, j + a vector) query i sees in this round and in no earlier one.
    IVec visible(int64_t i, int64_t j) const {
        const Problem& problem = sequence->problem;
        const IVec place = S::all(Int(key_place + j)) + S::steps();
        IVec result = (place >= S::all(Int(first[i]))) & (place < S::all(Int(last[i]))) & (place != S::all(Int(query_place + i)));
        if (problem.cross_bucket && problem.causal)
            result &= S::load(const_cast<Tile*>(this)->key_position.get() + j) < S::all(Int(query_position[i]));
        const UVec range = S::all(typename S::UInt(problem.before + problem.after));
        for (int64_t e = 0; e < earlier; ++e) {
            const IVec mine = S::all(const_cast<Tile*>(this)->query_code.get()[e * QUERIES + i]);
            const IVec theirs = S::load(const_cast<Tile*>(this)->key_code.get() + e * STRIDE + j);
            result &= (UVec)(mine - theirs) > range;
        }
        return result;
    }

    // Dropout's factors of the keys [j, j + a vector) for query i.
    Vec keep(int64_t i, int64_t j) {
        using UInt = typename S::UInt;
        const UVec low = S::all(UInt(0xFFFFFFFFu));
        const UVec position = (UVec)S::load(key_position.get() + j);
        UVec x = S::all(UInt(query_hash[i])) ^ (position * S::all(UInt(0xC2B2AE35u)) & low);
        x = (x ^ (x >> 16)) * S::all(UInt(0x7FEB352Du)) & low;
        x = (x ^ (x >> 15)) * S::all(UInt(0x846CA68Bu)) & low;
        x ^= x >> 16;
        return x >= S::all(UInt(sequence->problem.drop_below)) ? S::all(T(sequence->problem.keep_factor)) : Vec{};
    }

  private:
    void transpose(const T* rows, int64_t row_width, T* columns) {
        for (int64_t j = 0; j < keys; j += S::N)
            for (int64_t d = 0; d < row_width; d += S::N)
                transpose_square(rows + j * row_width + d, row_width, columns + d * STRIDE + j, STRIDE);
    }
};
