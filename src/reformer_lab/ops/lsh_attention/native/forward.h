// The forward pass. Each hash round is cut into blocks of sorted queries; a block walks over the keys that its queries may see,
// adding to the running maximum, total and output of their rows. A block writes to the rows of its own queries alone.
#pragma once

#include "tile.h"

// What logits are taken relative to.
template <class T> T base_of(T maximum) { return maximum == -std::numeric_limits<T>::infinity() ? T(0) : maximum; }

// What the pass fills besides the output: (sequences, length).
template <class T> struct Sums {
    T *logsumexp, *maximum, *total;
};

template <class T> class Forward : public Tile<T> {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    Buffer<T> output;
    T maximum[QUERIES], total[QUERIES];

    // Turn the logits of query i in columns [begin, end) into weights, after scaling what is there to the new maximum.
    void weigh(int64_t i, int64_t begin, int64_t end) {
        T* row = this->scores.get() + i * this->STRIDE;
        Vec top = S::all(maximum[i]);
        for (int64_t j = begin; j < end; j += S::N) {
            const Vec logit = this->visible(i, j) ? S::load(row + j) : S::all(-std::numeric_limits<T>::infinity());
            S::store(row + j, logit);
            top = logit > top ? logit : top;
        }
        const T highest = S::largest(top);
        if (highest > maximum[i]) {
            const T factor = total[i] == T(0) ? T(0) : std::exp(maximum[i] - highest);
            T* sums = output.get() + i * this->width_v;
            for (int64_t d = 0; d < this->width_v; d += S::N) S::store(sums + d, S::load(sums + d) * S::all(factor));
            total[i] *= factor;
            maximum[i] = highest;
        }
        const Vec base = S::all(base_of(maximum[i]));
        Vec sum{};
        for (int64_t j = begin; j < end; j += S::N) {
            Vec weight = S::exp(S::load(row + j) - base);
            sum += weight;
            if (this->sequence->problem.drop_below) weight *= this->keep(i, j);
            S::store(row + j, weight);
        }
        total[i] += S::sum(sum);
    }

  public:
    explicit Forward(const Problem& problem) : Tile<T>(problem), output(QUERIES * this->width_v) {}

    void block(const Sequence<T>& sequence, const Block& block) {
        this->load_queries(sequence, block);
        const int64_t width_v = sequence.problem.width_v;
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            std::memcpy(output.get() + i * this->width_v, sequence[OUTPUT][position], width_v * sizeof(T));
            maximum[i] = sequence.facts(position)[MAXIMUM];
            total[i] = sequence.facts(position)[TOTAL];
        }
        const int64_t keys_end = this->last[this->queries - 1];
        for (int64_t key = this->first[0]; key < keys_end; key += KEYS) {
            this->load_keys(key, std::min(key + KEYS, keys_end), false);
            for (int64_t a = 0, b; a < this->queries; a = b) {
                b = this->group_end(a);
                int64_t begin, end;
                this->columns(a, b, begin, end);
                if (begin >= end) continue;
                T* scores = this->scores.get() + a * this->STRIDE + begin;
                product<T, false>(b - a, (end - begin) / S::N, sequence.problem.width, this->q.get() + a * this->width, this->width,
                                  1, this->k_columns.get() + begin, this->STRIDE, scores, this->STRIDE);
                for (int64_t i = a; i < b; ++i) {
                    if (key == this->first[0]) this->prefetch(i);
                    weigh(i, begin, end);
                }
                product<T, true>(b - a, this->width_v / S::N, std::min(end, this->keys) - begin, scores, this->STRIDE, 1,
                                 this->v.get() + begin * this->width_v, this->width_v, output.get() + a * this->width_v,
                                 this->width_v);
            }
        }
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            std::memcpy(sequence[OUTPUT][position], output.get() + i * this->width_v, width_v * sizeof(T));
            sequence.facts(position)[MAXIMUM] = maximum[i];
            sequence.facts(position)[TOTAL] = total[i];
        }
    }

    // Divide by the total; a token that saw nothing takes itself.
    static void finish(const Sequence<T>& sequence, int64_t i, const Sums<T>& to) {
        const Problem& problem = sequence.problem;
        const int64_t at = sequence.index * problem.length + i;
        const T *facts = sequence.facts(i), *q = sequence[Q][i];
        const T maximum = facts[MAXIMUM], total = facts[TOTAL];
        const bool alone = total == T(0) && !sequence.is_padding(i);
        const T factor = alone ? sequence.keep_self(i) : total == T(0) ? T(0) : T(1) / total;
        T* output = sequence[OUTPUT][i];
        const T* from = alone ? sequence[V][i] : output;
        for (int64_t d = 0; d < problem.width_v; ++d) output[d] = from[d] * factor;
        sequence.write(OUTPUT, i);
        to.maximum[at] = maximum;
        to.total[at] = total;
        const T unit = facts[INVERSE_LENGTH] * T(problem.logit_scale);
        to.logsumexp[at] = alone ? dot(q, q, problem.width) * unit : maximum + std::log(total);
    }
};

template <class T> void forward(const Problem& problem, const Tensor4& output, const Sums<T>& sums) {
    const Layout<T> layout(problem, {{problem.qk, problem.width, Layout<T>::READ},
                                     {problem.v, problem.width_v, Layout<T>::READ},
                                     {output, problem.width_v, Layout<T>::ADD}});
    std::vector<std::unique_ptr<Forward<T>>> tiles(problem.threads);
    each_sequence<T>(problem, layout, [&](int64_t index, int64_t threads, T* memory, int64_t worker) {
        const Sequence<T> sequence(problem, layout, index, threads, memory);
        sequence.each_position([&](int64_t i) {
            sequence.facts(i)[MAXIMUM] = -std::numeric_limits<T>::infinity();
            sequence.facts(i)[TOTAL] = T(0);
        });
        each_block(sequence, 1, &tiles[worker], [&](Forward<T>& tile, const Block& block) { tile.block(sequence, block); });
        sequence.each_position([&](int64_t i) { Forward<T>::finish(sequence, i, sums); });
    });
}
