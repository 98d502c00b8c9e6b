// One block of sorted queries against one block of sorted keys: gathering their rows, scores, and who sees whom.
#pragma once

#include <limits>

#include "sequence.h"

constexpr int64_t KEYS = 128;  // places of a block of keys

// The scratch of one thread: rows of a block of queries, of a block of keys, and the scores between them.
template <class T> struct Tile {
    using S = Simd<T>;
    using Int = typename S::Int;
    using Vec = typename S::Vec;
    using IVec = typename S::IVec;
    using UVec = typename S::UVec;
    static constexpr int64_t CELL = CACHE_LINE / sizeof(T) > ROWS ? CACHE_LINE / sizeof(T) : ROWS;
    // One vector more than there are keys, so that the rows of a column do not share a set of the cache.
    static constexpr int64_t STRIDE = KEYS + CELL;

    const int64_t width, width_v;  // those of the problem, rounded up to whole vectors
    Buffer<T> q, k, v, k_columns, v_columns, scores, weights;
    Buffer<Int> query_code, key_code, key_position;
    int64_t query_position[QUERIES], first[QUERIES], last[QUERIES];
    uint64_t query_hash[QUERIES];
    int64_t query_place = 0, queries = 0, next = 0, key_place = 0, keys = 0;
    const Sequence<T>* sequence = nullptr;
    int64_t round = 0, earlier = 0;

    explicit Tile(const Problem& problem)
        : width(round_up(problem.width, CELL)), width_v(round_up(problem.width_v, CELL)), q(QUERIES * width), k(KEYS * width),
          v(KEYS * width_v), k_columns(width * STRIDE), v_columns(width_v * STRIDE), scores(QUERIES * STRIDE),
          weights(QUERIES * STRIDE), query_code(problem.rounds * QUERIES), key_code(problem.rounds * STRIDE),
          key_position(STRIDE) {}

    void load_queries(const Sequence<T>& of, const Block& block) {
        sequence = &of, round = block.round, query_place = block.begin, queries = block.end - block.begin, next = block.next;
        const Problem& problem = of.problem;
        const auto& sorted = of.rounds[round];
        earlier = problem.corrected ? round : 0;
        for (int64_t i = 0; i < queries; ++i) {
            const int64_t position = sorted.order[query_place + i];
            query_position[i] = position;
            first[i] = sorted.first[query_place + i];
            last[i] = sorted.last[query_place + i];
            std::memcpy(q.get() + i * width, of[Q][position], problem.width * sizeof(T));
            for (int64_t e = 0; e < earlier; ++e) query_code.get()[e * QUERIES + i] = of.code(position, e) + Int(problem.after);
            if (problem.drop_below) query_hash[i] = hash_query(of.hash, position);
        }
    }

    // Ask for what the next block gathers at its place i. Asked for all at once, the rows would queue up.
    void prefetch(int64_t i) const {
        const auto& order = sequence->rounds[round].order;
        if (next + i < int64_t(order.size())) sequence->prefetch(order[next + i]);
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
            const T* from = (*sequence)[Q][position];
            const T factor = sequence->facts(position)[INVERSE_LENGTH] * scale;
            T* to = k.get() + j * width;
            for (int64_t d = 0; d < problem.width; ++d) to[d] = from[d] * factor;
            std::memcpy(v.get() + j * width_v, (*sequence)[V][position], problem.width_v * sizeof(T));
            for (int64_t e = 0; e < earlier; ++e) key_code.get()[e * STRIDE + j] = sequence->code(position, e);
        }
        transpose(k.get(), width, k_columns.get());
        if (backward) transpose(v.get(), width_v, v_columns.get());
    }

    // Queries from a on that are worth one product: some of what one sees, the next sees too.
    int64_t group_end(int64_t a) const {
        int64_t b = a + 1;
        while (b < queries && b < a + ROWS && first[b] < last[b - 1]) ++b;
        return b;
    }

    // The columns that rows [a, b) of queries may see: from a multiple of ROWS on, whole cells; none if they end before they begin.
    void columns(int64_t a, int64_t b, int64_t& begin, int64_t& end) const {
        begin = std::max<int64_t>(0, first[a] - key_place) / ROWS * ROWS;
        end = begin + round_up(std::max<int64_t>(0, std::min(keys, last[b - 1] - key_place) - begin), CELL);
    }

    // Which of the keys [j, j + a vector) query i sees in this round and in no earlier one.
    IVec visible(int64_t i, int64_t j) const {
        const Problem& problem = sequence->problem;
        const IVec place = S::all(Int(key_place + j)) + S::steps();
        const int64_t end = std::min(last[i], key_place + keys);  // whole cells may go beyond the block
        IVec result = (place >= S::all(Int(first[i]))) & (place < S::all(Int(end))) & (place != S::all(Int(query_place + i)));
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
        const Problem& problem = sequence->problem;
        const UVec position = (UVec)S::load(key_position.get() + j);
        return keep_factors<T>(S::all(typename S::UInt(query_hash[i])), position, problem.drop_below, problem.keep_factor);
    }

  private:
    void transpose(const T* rows, int64_t row_width, T* columns) {
        for (int64_t j = 0; j < keys; j += S::N)
            for (int64_t d = 0; d < row_width; d += S::N)
                transpose_square(rows + j * row_width + d, row_width, columns + d * STRIDE + j, STRIDE);
    }
};
