// LSH attention on CPUs: the forward and the backward pass. The mathematics: ../README.md. Called through ctypes by
// __init__.py, so there is no header of torch or Python here.
//
// Each hash round is cut into blocks of sorted queries; a block walks over the keys that its queries may see, adding to
// the running maximum, total and output of their rows. Rows are gathered from and scattered to where they lie in the
// sequence. A block writes only rows of its own segment, and segments of a round share no row: the sums have one order,
// whatever the number of threads.

#include <memory>

#include "hash.h"
#include "tile.h"

namespace {

template <class T> T finite(T maximum) { return maximum == -std::numeric_limits<T>::infinity() ? T(0) : maximum; }

// The rows of one sequence that the forward pass fills: sums of exp(logit - maximum) v, and of exp(logit - maximum).
template <class T> struct Sums {
    T *output, *maximum, *total;
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
        const Vec base = S::all(finite(maximum[i]));
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

    void block(const Sequence<T>& sequence, int64_t round, int64_t place, int64_t place_end, const Sums<T>& sums) {
        this->load_queries(sequence, round, place, place_end);
        const int64_t width_v = sequence.problem.width_v;
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            std::memcpy(output.get() + i * this->width_v, sums.output + position * width_v, width_v * sizeof(T));
            maximum[i] = sums.maximum[position];
            total[i] = sums.total[position];
        }
        const int64_t keys_end = this->last[this->queries - 1];
        for (int64_t key = this->first[0]; key < keys_end; key += KEYS) {
            this->load_keys(key, std::min(key + KEYS, keys_end), false);
            for (int64_t a = 0; a < this->queries; a += ROWS) {
                const int64_t b = std::min<int64_t>(a + ROWS, this->queries);
                int64_t begin, end;
                this->columns(a, b, begin, end);
                if (begin >= end) continue;
                T* scores = this->scores.get() + a * this->STRIDE + begin;
                product<T, false>(b - a, (end - begin) / S::N, sequence.problem.width, this->q.get() + a * this->width, this->width,
                                  1, this->k_columns.get() + begin, this->STRIDE, scores, this->STRIDE);
                for (int64_t i = a; i < b; ++i) weigh(i, begin, end);
                product<T, true>(b - a, this->width_v / S::N, std::min(end, this->keys) - begin, scores, this->STRIDE, 1,
                                 this->v.get() + begin * this->width_v, this->width_v, output.get() + a * this->width_v,
                                 this->width_v);
            }
        }
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            std::memcpy(sums.output + position * width_v, output.get() + i * this->width_v, width_v * sizeof(T));
            sums.maximum[position] = maximum[i];
            sums.total[position] = total[i];
        }
    }

    // Divide by the totals; a token that saw nothing takes itself.
    static void finish(const Sequence<T>& sequence, const Sums<T>& sums, T* logsumexp) {
        const Problem& problem = sequence.problem;
        for (int64_t i = 0; i < problem.length; ++i) {
            T* output = sums.output + i * problem.width_v;
            const bool alone = sums.total[i] == T(0) && !sequence.is_padding(i);
            const T factor = alone ? sequence.keep_self(i) : sums.total[i] == T(0) ? T(0) : T(1) / sums.total[i];
            const T* from = alone ? sequence.v + i * problem.width_v : output;
            for (int64_t d = 0; d < problem.width_v; ++d) output[d] = from[d] * factor;
            logsumexp[i] = sums.maximum[i] + std::log(sums.total[i]);
            if (alone) {
                const T* q = sequence.q + i * problem.width;
                const T unit = sequence.inverse_length[i] * T(problem.logit_scale);
                T logit = 0;
                for (int64_t d = 0; d < problem.width; ++d) logit += q[d] * (q[d] * unit);
                logsumexp[i] = logit;
            }
        }
    }
};

// The rows of one sequence that the backward pass reads and adds to.
template <class T> struct Gradients {
    const T *maximum, *total, *d_output, *d_logsumexp;
    const T* shift;  // d logit = weight * (d weight - shift)
    T *d_q, *d_k, *d_v;  // d_k: of the unit vectors, times the logit's scale
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
    void keys_receive(const Gradients<T>& to) {
        const Problem& problem = this->sequence->problem;
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
                add(to.d_k + position * problem.width, d_k.get() + i * this->width, problem.width);
                add(to.d_v + position * problem.width_v, d_v.get() + i * this->width_v, problem.width_v);
            }
        }
    }

    static void add(T* to, const T* what, int64_t size) {
        for (int64_t d = 0; d < size; ++d) to[d] += what[d];
    }

  public:
    explicit Backward(const Problem& problem)
        : Tile<T>(problem), d_output(QUERIES * this->width_v), d_q(QUERIES * this->width), d_k(ROWS * this->width),
          d_v(ROWS * this->width_v) {}

    void block(const Sequence<T>& sequence, int64_t round, int64_t place, int64_t place_end, const Gradients<T>& to) {
        this->load_queries(sequence, round, place, place_end);
        const int64_t width = sequence.problem.width, width_v = sequence.problem.width_v;
        for (int64_t i = 0; i < this->queries; ++i) {
            const int64_t position = this->query_position[i];
            // weight = exp(logit - maximum) / total; the division is done here, once for a row.
            const T inverse = to.total[position] == T(0) ? T(0) : T(1) / to.total[position];
            const T* given = to.d_output + position * width_v;
            shift[i] = to.shift[position] * inverse;
            base[i] = finite(to.maximum[position]);
            T* scaled = d_output.get() + i * this->width_v;
            for (int64_t d = 0; d < width_v; ++d) scaled[d] = given[d] * inverse;
        }
        std::memset(d_q.get(), 0, this->queries * this->width * sizeof(T));
        const int64_t keys_end = this->last[this->queries - 1];
        for (int64_t key = this->first[0]; key < keys_end; key += KEYS) {
            this->load_keys(key, std::min(key + KEYS, keys_end), true);
            for (int64_t a = 0; a < this->queries; a += ROWS) {
                const int64_t b = std::min<int64_t>(a + ROWS, this->queries);
                int64_t begin, end;
                this->columns(a, b, begin, end);
                if (begin >= end) continue;
                const int64_t at = a * this->STRIDE + begin;
                product<T, false>(b - a, (end - begin) / S::N, width, this->q.get() + a * this->width, this->width, 1,
                                  this->k_columns.get() + begin, this->STRIDE, this->scores.get() + at, this->STRIDE);
                product<T, false>(b - a, (end - begin) / S::N, width_v, d_output.get() + a * this->width_v, this->width_v, 1,
                                  this->v_columns.get() + begin, this->STRIDE, this->weights.get() + at, this->STRIDE);
                for (int64_t i = a; i < b; ++i) {
                    if (key == this->first[0]) {
                        for (const T* rows : {sequence.q, static_cast<const T*>(to.d_q), static_cast<const T*>(to.d_k)})
                            this->prefetch(i, rows, width);
                        for (const T* rows : {sequence.v, to.d_output, static_cast<const T*>(to.d_v)})
                            this->prefetch(i, rows, width_v);
                    }
                    differentiate(i, begin, end);
                }
                product<T, true>(b - a, this->width / S::N, std::min(end, this->keys) - begin, this->scores.get() + at,
                                 this->STRIDE, 1, this->k.get() + begin * this->width, this->width, d_q.get() + a * this->width,
                                 this->width);
            }
            keys_receive(to);
        }
        for (int64_t i = 0; i < this->queries; ++i)
            add(to.d_q + this->query_position[i] * width, d_q.get() + i * this->width, width);
    }

    // Add the gradients of the keys to those of the queries, and those of tokens that saw themselves alone.
    static void finish(const Sequence<T>& sequence, const Gradients<T>& to) {
        const Problem& problem = sequence.problem;
        const int64_t width = problem.width, width_v = problem.width_v;
        const T scale = T(problem.logit_scale);
        for (int64_t i = 0; i < problem.length; ++i) {
            const T* q = sequence.q + i * width;
            T *d_q = to.d_q + i * width, *d_k = to.d_k + i * width;
            const T inverse = sequence.inverse_length[i];
            if (to.total[i] == T(0) && !sequence.is_padding(i)) {
                const T d_self = to.d_logsumexp[i], keep = sequence.keep_self(i);
                for (int64_t d = 0; d < width; ++d) {
                    d_q[d] += d_self * (q[d] * inverse * scale);
                    d_k[d] += d_self * q[d];
                }
                for (int64_t d = 0; d < width_v; ++d) to.d_v[i * width_v + d] += to.d_output[i * width_v + d] * keep;
            }
            const T along = Sequence<T>::dot(q, d_k, width) * inverse;
            for (int64_t d = 0; d < width; ++d) d_q[d] += scale * ((d_k[d] - q[d] * inverse * along) * inverse);
        }
    }
};

// Call work(tile, round, first place, end) for every block of queries of a sequence, one round after another.
template <class Scratch, class T, class Work>
void each_block(const Sequence<T>& sequence, int64_t threads, std::vector<std::unique_ptr<Scratch>>& scratch, Work work) {
    for (int64_t round = 0; round < sequence.problem.rounds; ++round) {
        const auto& segments = sequence.rounds[round].segments;
        parallel_for(int64_t(segments.size()) - 1, threads, [&](int64_t worker, int64_t s) {
            if (!scratch[worker]) scratch[worker] = std::make_unique<Scratch>(sequence.problem);
            for (int64_t place = segments[s]; place < segments[s + 1]; place += QUERIES)
                work(*scratch[worker], round, place, std::min<int64_t>(place + QUERIES, segments[s + 1]));
        });
    }
}

// Call work(sequence, threads inside, scratch): sequences side by side where there are enough, segments otherwise.
template <class Scratch, class T, class Work> void each_sequence(const Problem& problem, Work work) {
    const bool side_by_side = problem.sequences >= problem.threads;
    const int64_t inside = side_by_side ? 1 : problem.threads;
    std::vector<std::vector<std::unique_ptr<Scratch>>> scratch(problem.threads);
    parallel_for(problem.sequences, side_by_side ? problem.threads : 1, [&](int64_t worker, int64_t n) {
        scratch[worker].resize(inside);
        work(Sequence<T>(problem, n, inside), inside, scratch[worker]);
    });
}

template <class T> void forward(const Problem& problem, T* output, T* maximum, T* total, T* logsumexp) {
    each_sequence<Forward<T>, T>(problem, [&](const Sequence<T>& sequence, int64_t threads, auto& scratch) {
        const int64_t row = sequence.index * problem.length;
        const Sums<T> sums{output + row * problem.width_v, maximum + row, total + row};
        std::fill_n(sums.output, problem.length * problem.width_v, T(0));
        std::fill_n(sums.maximum, problem.length, -std::numeric_limits<T>::infinity());
        std::fill_n(sums.total, problem.length, T(0));
        each_block(sequence, threads, scratch, [&](Forward<T>& tile, int64_t round, int64_t place, int64_t end) {
            tile.block(sequence, round, place, end, sums);
        });
        Forward<T>::finish(sequence, sums, logsumexp + row);
    });
}

template <class T>
void backward(const Problem& problem, const T* output, const T* maximum, const T* total, const T* d_output, const T* d_logsumexp,
              T* d_qk, T* d_v) {
    each_sequence<Backward<T>, T>(problem, [&](const Sequence<T>& sequence, int64_t threads, auto& scratch) {
        const int64_t row = sequence.index * problem.length;
        Buffer<T> d_k(problem.length * problem.width), shift(problem.length);
        const Gradients<T> to{maximum + row, total + row, d_output + row * problem.width_v, d_logsumexp + row, shift.get(),
                              d_qk + row * problem.width, d_k.get(), d_v + row * problem.width_v};
        // The softmax's own term, less what the gradient of the logsumexp adds.
        for (int64_t i = 0; i < problem.length; ++i) {
            const int64_t at = i * problem.width_v;
            shift.get()[i] = Sequence<T>::dot(to.d_output + at, output + row * problem.width_v + at, problem.width_v) - to.d_logsumexp[i];
        }
        std::fill_n(to.d_q, problem.length * problem.width, T(0));
        std::fill_n(to.d_v, problem.length * problem.width_v, T(0));
        each_block(sequence, threads, scratch, [&](Backward<T>& tile, int64_t round, int64_t place, int64_t end) {
            tile.block(sequence, round, place, end, to);
        });
        Backward<T>::finish(sequence, to);
    });
}

// Return 0, or 1 if memory ran out.
template <class Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

extern "C" {

int lsh_hash_float(const HashProblem* problem) {
    return guarded([&] { hash_vectors<float>(*problem); });
}

int lsh_hash_double(const HashProblem* problem) {
    return guarded([&] { hash_vectors<double>(*problem); });
}

int lsh_forward_float(const Problem* problem, float* output, float* maximum, float* total, float* logsumexp) {
    return guarded([&] { forward(*problem, output, maximum, total, logsumexp); });
}

int lsh_forward_double(const Problem* problem, double* output, double* maximum, double* total, double* logsumexp) {
    return guarded([&] { forward(*problem, output, maximum, total, logsumexp); });
}

int lsh_backward_float(const Problem* problem, const float* output, const float* maximum, const float* total,
                       const float* d_output, const float* d_logsumexp, float* d_qk, float* d_v) {
    return guarded([&] { backward(*problem, output, maximum, total, d_output, d_logsumexp, d_qk, d_v); });
}

int lsh_backward_double(const Problem* problem, const double* output, const double* maximum, const double* total,
                        const double* d_output, const double* d_logsumexp, double* d_qk, double* d_v) {
    return guarded([&] { backward(*problem, output, maximum, total, d_output, d_logsumexp, d_qk, d_v); });
}
}
