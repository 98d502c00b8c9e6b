// The backward pass. It recomputes the scores of one block at a time. A block writes to the rows of its queries and of the keys
// that they see: all within what the ranges of its segment reach, and no two segments of a phase reach the same. So the sums
// have one order, whatever the number of threads.
#pragma once

#include "forward.h"

// What the pass reads besides rows: (sequences, length).
template <class T> struct Saved {
    const T *maximum, *total, *d_logsumexp;
};

template <class T> class Backward : public Tile<T> {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    Buffer<T> d_output, d_q, d_k, d_v;
    T base[QUERIES], shift[QUERIES];

    // Turn the logits of query i in columns [begin, end) into their gradients, and what lies in `weights` into the weights.
    void differentiate(int64_t i, int64_t begin, int64_t end) {
        T* row = this->scores.get() + i * this->STRIDE;
        T* weights = this->weights.get() + i * this->STRIDE;
        for (int64_t j = begin; j < end; j += S::N) {
            const auto visible = this->visible(i, j);
            const Vec weight = visible ? S::exp(S::load(row + j) - S::all(base[i])) : Vec{};
            Vec kept = weight, d_weight = S::load(weights + j);
            if (this->sequence->problem.drop_below) {
                const Vec keep = this->keep(i, j);
                kept *= keep;
                d_weight *= keep;
            }
            S::store(weights + j, kept);
            S::store(row + j, visible ? weight * (d_weight - S::all(shift[i])) : Vec{});
        }
    }

    // Add what the keys of this tile receive, a few keys at a time, each from the queries that may see one of them.
    void keys_receive() {
        const Sequence<T>& sequence = *this->sequence;
        const Problem& problem = sequence.problem;
        int64_t a = 0, b = 0;
        for (int64_t j = 0; j < this->keys; j += ROWS) {
            const int64_t rows = std::min<int64_t>(ROWS, this->keys - j);
            while (a < this->queries && this->last[a] <= this->key_place + j) ++a;
            while (b < this->queries && this->first[b] < this->key_place + j + ROWS) ++b;
            if (a >= b) continue;
            const int64_t at = a * this->STRIDE + j;
            product<T, false>(rows, this->width / S::N, b - a, this->scores.get() + at, 1, this->STRIDE,
                              this->q.get() + a * this->width, this->width, d_k.get(), this->width);
            product<T, false>(rows, this->width_v / S::N, b - a, this->weights.get() + at, 1, this->STRIDE,
                              d_output.get() + a * this->width_v, this->width_v, d_v.get(), this->width_v);
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t position = this->key_position.get()[j + i];
                through_unit(this->k.get() + (j + i) * this->width, sequence.facts(position)[INVERSE_LENGTH],
                             d_k.get() + i * this->width);
                add(sequence[D_QK][position], d_k.get() + i * this->width, problem.width);
                add(sequence[D_V][position], d_v.get() + i * this->width_v, problem.width_v);
            }
        }
    }

    // Turn the gradient of k = scale x / |x| into that of x: what points along k does not change it.
    void through_unit(const T* k, T inverse_length, T* d_k) const {
        const T scale = T(this->sequence->problem.logit_scale);
        Vec product{};
        for (int64_t d = 0; d < this->width; d += S::N) product += S::load(k + d) * S::load(d_k + d);
        const Vec along = S::all(S::sum(product) / (scale * scale)), factor = S::all(scale * inverse_length);
        for (int64_t d = 0; d < this->width; d += S::N)
            S::store(d_k + d, (S::load(d_k + d) - S::load(k + d) * along) * factor);
    }

    static void add(T* to, const T* what, int64_t size) {
        for (int64_t d = 0; d < size; ++d) to[d] += what[d];
    }

  public:
    explicit Backward(const Problem& problem)
        : Tile<T>(problem), d_output(QUERIES * this->width_v), d_q(QUERIES * this->width), d_k(ROWS * this->width),
          d_v(ROWS * this->width_v) {}

    void block(const Sequence<T>& sequence, const Block& block) {
        this->load_queries(sequence, block);
        const int64_t width = sequence.problem.width, width_v = sequence.problem.width_v;
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            const T *facts = sequence.facts(position), *given = sequence[D_OUTPUT][position];
            // weight = exp(logit - maximum) / total; the division is done here, once for a row.
            const T inverse = facts[TOTAL] == T(0) ? T(0) : T(1) / facts[TOTAL];
            shift[i] = facts[SHIFT] * inverse;
            base[i] = base_of(facts[MAXIMUM]);
            T* scaled = d_output.get() + i * this->width_v;
            for (int64_t d = 0; d < width_v; ++d) scaled[d] = given[d] * inverse;
        }
        std::memset(d_q.get(), 0, this->queries * this->width * sizeof(T));
        const int64_t keys_end = this->last[this->queries - 1];
        for (int64_t key = this->first[0]; key < keys_end; key += KEYS) {
            this->load_keys(key, std::min(key + KEYS, keys_end), true);
            for (int64_t a = 0, b; a < this->queries; a = b) {
                b = this->group_end(a);
                int64_t begin, end;
                this->columns(a, b, begin, end);
                if (begin >= end) continue;
                const int64_t at = a * this->STRIDE + begin;
                product<T, false>(b - a, (end - begin) / S::N, width, this->q.get() + a * this->width, this->width, 1,
                                  this->k_columns.get() + begin, this->STRIDE, this->scores.get() + at, this->STRIDE);
                product<T, false>(b - a, (end - begin) / S::N, width_v, d_output.get() + a * this->width_v, this->width_v, 1,
                                  this->v_columns.get() + begin, this->STRIDE, this->weights.get() + at, this->STRIDE);
                for (int64_t i = a; i < b; ++i) {
                    if (key == this->first[0]) this->prefetch(i);
                    differentiate(i, begin, end);
                }
                product<T, true>(b - a, this->width / S::N, std::min(end, this->keys) - begin, this->scores.get() + at,
                                 this->STRIDE, 1, this->k.get() + begin * this->width, this->width, d_q.get() + a * this->width,
                                 this->width);
            }
            keys_receive();
        }
        for (int64_t i = 0; i < this->queries; ++i)
            add(sequence[D_QK][this->query_position[i]], d_q.get() + i * this->width, width);
    }

    // What blocks need to know of a position's row.
    static void begin(const Sequence<T>& sequence, int64_t i, const Rows<T>& output, const Saved<T>& saved, T* row) {
        const int64_t at = sequence.index * sequence.problem.length + i;
        output.read(i, row);
        T* facts = sequence.facts(i);
        facts[MAXIMUM] = saved.maximum[at];
        facts[TOTAL] = saved.total[at];
        // The softmax's own term, less what the gradient of the logsumexp adds: d logit = weight * (d weight - shift).
        facts[SHIFT] = dot(sequence[D_OUTPUT][i], row, sequence.problem.width_v) - saved.d_logsumexp[at];
    }

    // Add the gradients of a token that saw itself alone: its logit is scale |x|.
    static void finish(const Sequence<T>& sequence, int64_t i, const Saved<T>& saved) {
        const Problem& problem = sequence.problem;
        if (sequence.facts(i)[TOTAL] == T(0) && !sequence.is_padding(i)) {
            const T keep = sequence.keep_self(i), scale = T(problem.logit_scale);
            const T along = saved.d_logsumexp[sequence.index * problem.length + i] * scale * sequence.facts(i)[INVERSE_LENGTH];
            for (int64_t d = 0; d < problem.width; ++d) sequence[D_QK][i][d] += along * sequence[Q][i][d];
            for (int64_t d = 0; d < problem.width_v; ++d) sequence[D_V][i][d] += sequence[D_OUTPUT][i][d] * keep;
        }
        sequence.write(D_QK, i);
        sequence.write(D_V, i);
    }
};

template <class T>
void backward(const Problem& problem, const Tensor4& output, const Tensor4& d_output, const Saved<T>& saved, const Tensor4& d_qk,
              const Tensor4& d_v) {
    const Layout<T> layout(problem, {{problem.qk, problem.width, Layout<T>::READ},
                                     {problem.v, problem.width_v, Layout<T>::READ},
                                     {d_output, problem.width_v, Layout<T>::READ},
                                     {d_qk, problem.width, Layout<T>::ADD},
                                     {d_v, problem.width_v, Layout<T>::ADD}});
    std::vector<std::unique_ptr<Backward<T>>> tiles(problem.threads);
    each_sequence<T>(problem, layout, [&](int64_t index, int64_t threads, T* memory, int64_t worker) {
        const Sequence<T> sequence(problem, layout, index, threads, memory);
        const Rows<T> outputs = sequence.rows(output, problem.width_v);
        sequence.each_slab([&](int64_t begin, int64_t end) {
            std::vector<T> row(problem.width_v);
            for (int64_t i = begin; i < end; ++i) Backward<T>::begin(sequence, i, outputs, saved, row.data());
        });
        each_block(sequence, 2, &tiles[worker], [&](Backward<T>& tile, const Block& block) { tile.block(sequence, block); });
        sequence.each_position([&](int64_t i) { Backward<T>::finish(sequence, i, saved); });
    });
}
