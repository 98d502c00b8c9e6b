// The passes of local attention. Segments of a sequence are independent of each other: each writes to the rows of its own positions
// alone, so that results do not depend on the number of threads.
#pragma once

#include <memory>
#include <vector>

#include "local_tile.h"
#include "parallel.h"

namespace local {

// Call work(begin, end) for pieces of [begin, end) of at most `size`.
template <class Work> void each_piece(int64_t begin, int64_t end, int64_t size, Work work) {
    for (int64_t at = begin; at < end; at += size) work(at, std::min(at + size, end));
}

// Positions of a segment: whole chunks, many against those that it looks at beyond its ends.
inline int64_t segment_length(const Problem& problem) {
    const int64_t beyond = (problem.before + problem.after) * problem.chunk_length;
    return round_up(std::max<int64_t>(1024, 4 * beyond), problem.chunk_length);
}

// Call work(pass, sequence, begin, end) for each segment; a thread has one pass, and takes one segment after another.
template <class T, class Pass, class Work> void each_segment(const Problem& problem, Work work) {
    const int64_t length = std::min(problem.length, segment_length(problem));
    const int64_t segments = (problem.length + length - 1) / length;
    std::vector<std::unique_ptr<Pass>> passes(problem.threads);
    parallel_for(problem.batch * problem.heads * segments, problem.threads, [&](int64_t worker, int64_t n) {
        if (!passes[worker]) passes[worker] = std::make_unique<Pass>(problem);
        const Sequence<T> sequence(problem, n / segments);
        passes[worker]->begin(sequence);
        const int64_t begin = n % segments * length;
        work(*passes[worker], sequence, begin, std::min(begin + length, problem.length));
    });
}

template <class T> class Forward : public Tile<T> {
    using S = Simd<T>;
    using Vec = typename S::Vec;
    Buffer<T> output;
    T maximum[QUERIES], total[QUERIES];

    // Turn the logits of the queries [a, a + a vector) with keys [from, to) into weights, after scaling what is there to the new
    // maximum.
    void weigh(int64_t a, int64_t from, int64_t to) {
        const Vec before = S::load(maximum + a);
        Vec top = before;
        const Vec nothing = S::all(-std::numeric_limits<T>::infinity());
        this->each_key(a, from, to, [&](int64_t j, auto visible) {
            const Vec logit = visible(S::load(this->scores.get() + j * QUERIES + a), nothing);
            top = logit > top ? logit : top;
        });
        const Vec base = top == nothing ? Vec{} : top;
        const Vec factor = S::exp(before - base);
        Vec sum = S::load(total + a) * factor;
        this->each_key(a, from, to, [&](int64_t j, auto visible) {
            T* at = this->scores.get() + j * QUERIES + a;
            Vec weight = visible(S::exp(S::load(at) - base), Vec{});
            sum += weight;
            if (this->problem.drop_below) weight *= this->keep(a, j);
            S::store(at, weight);
        });
        for (int64_t i = 0; i < S::N; ++i) {
            if (total[a + i] == T(0) || factor[i] == T(1)) continue;
            T* row = output.get() + (a + i) * this->width_v;
            for (int64_t d = 0; d < this->width_v; d += S::N) S::store(row + d, S::load(row + d) * S::all(factor[i]));
        }
        S::store(maximum + a, top);
        S::store(total + a, sum);
    }

  public:
    explicit Forward(const Problem& problem) : Tile<T>(problem), output(QUERIES * this->width_v) {}

    void block(int64_t begin, int64_t end, const Rows<T>& to, T* logsumexp) {
        this->load_queries(begin, end);
        std::memset(output.get(), 0, QUERIES * this->width_v * sizeof(T));
        std::fill_n(maximum, QUERIES, -std::numeric_limits<T>::infinity());
        std::fill_n(total, QUERIES, T(0));
        each_piece(this->first_key(), this->keys_end(), KEYS, [&](int64_t key, int64_t keys_end) {
            this->load_keys(key, keys_end);
            this->multiply(this->k, this->width, this->q_columns.get(), this->scores.get());
            this->each_vector([&](int64_t a, int64_t from, int64_t to) {
                if (key == this->first_key()) this->ask_for_next(a, {});
                weigh(a, from, to);
            });
            this->add_to_queries(this->scores.get(), this->v, this->width_v, output.get());
        });
        for (int64_t i = 0; i < this->queries; ++i) {
            T* row = output.get() + i * this->width_v;
            const Vec factor = S::all(total[i] == T(0) ? T(0) : T(1) / total[i]);
            for (int64_t d = 0; d < this->width_v; d += S::N) S::store(row + d, S::load(row + d) * factor);
            to.write(begin + i, row);
            logsumexp[begin + i] = maximum[i] + std::log(total[i]);
        }
    }
};

template <class T> class Backward : public Tile<T> {
  public:
    // What the rows of one sequence are read from and written to.
    struct Tensors {
        Rows<T> output, d_output, d_q, d_k, d_v;
        const T* logsumexp;
    };

  private:
    using S = Simd<T>;
    using Vec = typename S::Vec;
    Buffer<T> d_output, d_output_columns, weights, d_q, output_row;
    Buffer<T> d_k, d_v;  // of the segment
    T base[QUERIES], shift[QUERIES];
    int64_t segment_begin = 0;

    // Turn the logits of the queries [a, a + a vector) with keys [from, to) into their gradients, and the gradients of the weights
    // into the weights.
    void differentiate(int64_t a, int64_t from, int64_t to) {
        const Vec base_a = S::load(base + a), shift_a = S::load(shift + a);
        this->each_key(a, from, to, [&](int64_t j, auto visible) {
            T *score = this->scores.get() + j * QUERIES + a, *at = weights.get() + j * QUERIES + a;
            const Vec weight = visible(S::exp(S::load(score) - base_a), Vec{});
            Vec kept = weight, d_weight = S::load(at);
            if (this->problem.drop_below) {
                const Vec keep = this->keep(a, j);
                kept *= keep;
                d_weight *= keep;
            }
            S::store(at, kept);
            // Selected again: the gradient of a hidden pair's weight may be anything.
            S::store(score, visible(weight * (d_weight - shift_a), Vec{}));
        });
    }

    // Add what the keys of this tile receive.
    void keys_receive() {
        const int64_t width = this->width, width_v = this->width_v, row = this->key_begin - segment_begin;
        this->each_keys([&](int64_t j, int64_t count, int64_t a, int64_t b) {
            const int64_t at = j * QUERIES + a, queries = std::min(b, this->queries) - a;
            product<T, true>(count, width / S::N, queries, this->scores.get() + at, QUERIES, 1, this->q.get() + a * width, width,
                             d_k.get() + (row + j) * width, width);
            product<T, true>(count, width_v / S::N, queries, weights.get() + at, QUERIES, 1, d_output.get() + a * width_v, width_v,
                             d_v.get() + (row + j) * width_v, width_v);
        });
    }

    // The keys of one block, the queries' gradients if `mine`, those of the keys if `receive`.
    void against(const Tensors& tensors, int64_t begin, int64_t end, bool mine, bool receive) {
        each_piece(begin, end, KEYS, [&](int64_t key, int64_t keys_end) {
            this->load_keys(key, keys_end);
            this->multiply(this->k, this->width, this->q_columns.get(), this->scores.get());
            this->multiply(this->v, this->width_v, d_output_columns.get(), weights.get());
            this->each_vector([&](int64_t a, int64_t from, int64_t to) {
                if (key == this->first_key()) this->ask_for_next(a, {&tensors.output, &tensors.d_output});
                differentiate(a, from, to);
            });
            if (mine) this->add_to_queries(this->scores.get(), this->k, this->width, d_q.get());
            if (receive) keys_receive();
        });
    }

  public:
    explicit Backward(const Problem& problem)
        : Tile<T>(problem), d_output(QUERIES * this->width_v), d_output_columns(this->width_v * QUERIES), weights(KEYS * QUERIES),
          d_q(QUERIES * this->width), output_row(this->width_v), d_k(std::min(problem.length, segment_length(problem)) * this->width),
          d_v(std::min(problem.length, segment_length(problem)) * this->width_v) {}

    void segment(const Tensors& tensors, int64_t begin, int64_t end) {
        const Problem& problem = this->problem;
        segment_begin = begin;
        std::memset(d_k.get(), 0, (end - begin) * this->width * sizeof(T));
        std::memset(d_v.get(), 0, (end - begin) * this->width_v * sizeof(T));
        // Queries outside that see keys of the segment: their own gradients are another segment's.
        const int64_t chunk = problem.chunk_length;
        const int64_t outside_begin = problem.causal ? begin : std::max<int64_t>(0, begin - problem.after * chunk);
        const int64_t outside_end = std::min(problem.length, end + problem.before * chunk);
        const auto take = [&](int64_t from, int64_t to) { block(tensors, from, to, begin, end); };
        each_piece(outside_begin, begin, QUERIES, take);
        each_piece(begin, end, QUERIES, take);
        each_piece(end, outside_end, QUERIES, take);
        for (int64_t j = begin; j < end; ++j) {
            tensors.d_k.write(j, d_k.get() + (j - begin) * this->width);
            tensors.d_v.write(j, d_v.get() + (j - begin) * this->width_v);
        }
    }

  private:
    void block(const Tensors& tensors, int64_t begin, int64_t end, int64_t segment_begin, int64_t segment_end) {
        const bool mine = segment_begin <= begin && end <= segment_end;
        const int64_t width_v = this->problem.width_v;
        this->load_queries(begin, end);
        this->sequence->read(tensors.d_output, begin, end, d_output.get(), this->width_v);
        for (int64_t i = 0; i < this->queries; ++i) {
            tensors.output.read(begin + i, output_row.get());
            shift[i] = dot(d_output.get() + i * this->width_v, output_row.get(), width_v);
            const T sum = tensors.logsumexp[begin + i];
            base[i] = sum == -std::numeric_limits<T>::infinity() ? T(0) : sum;
        }
        this->transpose(d_output.get(), this->width_v, d_output_columns.get());
        std::memset(d_q.get(), 0, this->queries * this->width * sizeof(T));
        const int64_t first = this->first_key(), keys_end = this->keys_end();
        const int64_t from = std::max(first, segment_begin), to = std::min(keys_end, segment_end);
        if (mine) against(tensors, first, from, true, false);
        against(tensors, from, to, mine, true);
        if (!mine) return;
        against(tensors, to, keys_end, true, false);
        const T scale = T(this->problem.scale);
        for (int64_t i = 0; i < this->queries; ++i) {
            T* row = d_q.get() + i * this->width;
            for (int64_t d = 0; d < this->width; ++d) row[d] *= scale;
            tensors.d_q.write(begin + i, row);
        }
    }
};

template <class T> void forward(const Problem& problem, const Tensor4& output, T* logsumexp) {
    each_segment<T, Forward<T>>(problem, [&](Forward<T>& pass, const Sequence<T>& sequence, int64_t begin, int64_t end) {
        const Rows<T> rows = sequence.rows(output, problem.width_v);
        T* sums = logsumexp + sequence.index * problem.length;
        each_piece(begin, end, QUERIES, [&](int64_t from, int64_t to) { pass.block(from, to, rows, sums); });
    });
}

template <class T>
void backward(const Problem& problem, const Tensor4& output, const Tensor4& d_output, const T* logsumexp, const Tensor4& d_q,
              const Tensor4& d_k, const Tensor4& d_v) {
    each_segment<T, Backward<T>>(problem, [&](Backward<T>& pass, const Sequence<T>& sequence, int64_t begin, int64_t end) {
        const int64_t width = problem.width, width_v = problem.width_v;
        pass.segment({sequence.rows(output, width_v), sequence.rows(d_output, width_v), sequence.rows(d_q, width),
                      sequence.rows(d_k, width), sequence.rows(d_v, width_v), logsumexp + sequence.index * problem.length},
                     begin, end);
    });
}

}  // namespace local
