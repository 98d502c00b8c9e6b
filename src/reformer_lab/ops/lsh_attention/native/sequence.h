// One sequence (example and head): its rounds, and the rows that the passes gather and scatter.
//
// The rows of a position are met together, in an order that is not that of memory. So they are packed into one record: one
// stretch to ask for, in full precision whatever the tensors' is, in large pages. A sequence too long for that has its rows read
// and written where they lie in the tensors, if these allow it.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "dropout.h"
#include "layout.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

constexpr int64_t QUERIES = 64;     // places of a block of queries
constexpr int64_t SLAB_ROWS = 512;  // positions that one thread packs before it takes others

// What a record says of its position besides the rows; the codes of its rounds follow.
enum Fact : int64_t { INVERSE_LENGTH, MAXIMUM, TOTAL, SHIFT, CODES };

// Which rows a pass needs, and where a record keeps them.
template <class T> class Layout {
  public:
    enum Use { READ, ADD };
    struct Part {
        Tensor4 tensor;
        int64_t width;
        Use use;
        int64_t offset = IN_TENSOR;
    };
    static constexpr int64_t IN_TENSOR = -1;

    std::vector<Part> parts;  // q, v, then those of the pass
    int64_t size;             // numbers of a record, which begins with the facts
    bool packed = true;

    Layout(const Problem& problem, std::vector<Part> of_pass) : parts(std::move(of_pass)) {
        arrange(problem);
        packed = bytes(problem) <= problem.records_bytes;
        if (!packed) arrange(problem);
    }

    int64_t bytes(const Problem& problem) const { return problem.length * size * int64_t(sizeof(T)); }

  private:
    void arrange(const Problem& problem) {
        constexpr int64_t LINE = CACHE_LINE / sizeof(T);
        size = round_up(CODES + problem.rounds, LINE);
        for (Part& part : parts) {
            const bool usable = part.tensor.precision == FULL && part.tensor.strides[3] == 1;
            part.offset = !packed && usable ? IN_TENSOR : size;
            if (part.offset != IN_TENSOR) size += round_up(part.width, LINE);
        }
    }
};

enum : int64_t { Q, V, OUTPUT, D_OUTPUT = OUTPUT, D_QK, D_V };  // parts

template <class T> class Sequence {
    using Int = typename Lanes<T>::Int;

    const Layout<T>& layout;
    Field<T> records;
    std::vector<Field<T>> fields;

  public:
    const Problem& problem;
    const int64_t index, threads;
    const uint64_t hash;
    std::vector<Round<Int>> rounds;

    // `memory`: layout.bytes of it, which the sequence uses as long as it lives.
    Sequence(const Problem& problem, const Layout<T>& layout, int64_t index, int64_t threads, T* memory)
        : layout(layout), records{memory, layout.size}, problem(problem), index(index), threads(threads),
          hash(hash_sequence(problem.dropout_seed, index)), rounds(problem.rounds) {
        for (const auto& part : layout.parts) {
            const bool in_tensor = part.offset == Layout<T>::IN_TENSOR;
            fields.push_back(in_tensor ? rows(part.tensor, part.width).in_place() : Field<T>{memory + part.offset, layout.size});
        }
        parallel_for(problem.rounds, threads, [&](int64_t, int64_t r) { rounds[r] = make_round<Int>(problem, index, r); });
        each_position([&](int64_t i) { pack(i); });
    }

    Rows<T> rows(const Tensor4& tensor, int64_t width) const {
        return Rows<T>(tensor, index / problem.heads, index % problem.heads, width);
    }
    const Field<T>& operator[](int64_t part) const { return fields[part]; }
    T* facts(int64_t position) const { return records[position]; }
    Int code(int64_t position, int64_t round) const { return Simd<T>::template load_as<Int>(facts(position) + CODES + round); }

    bool is_padding(int64_t position) const {
        return problem.padding && problem.padding[index / problem.heads * problem.length + position];
    }
    T keep_self(int64_t position) const {
        const bool kept = int64_t(hash_key(hash_query(hash, position), position)) >= problem.drop_below;
        return kept ? T(problem.keep_factor) : T(0);
    }

    // Call work(first position, end) for all positions, a slab at a time.
    template <class Work> void each_slab(Work work) const {
        parallel_for((problem.length + SLAB_ROWS - 1) / SLAB_ROWS, threads, [&](int64_t, int64_t slab) {
            work(slab * SLAB_ROWS, std::min((slab + 1) * SLAB_ROWS, problem.length));
        });
    }
    template <class Work> void each_position(Work work) const {
        each_slab([&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) work(i);
        });
    }

    // Write the rows of a part to its tensor.
    void write(int64_t part, int64_t position) const {
        const auto& kept = layout.parts[part];
        if (kept.offset != Layout<T>::IN_TENSOR) rows(kept.tensor, kept.width).write(position, fields[part][position]);
    }

    // Ask for what is kept of a position.
    void prefetch(int64_t position) const {
        ask(records[position], layout.size);
        if (layout.packed) return;
        for (size_t p = 0; p < fields.size(); ++p)
            if (layout.parts[p].offset == Layout<T>::IN_TENSOR) ask(fields[p][position], layout.parts[p].width);
    }

  private:
    // Into the second cache: the first is too small for what comes, and its few requests at a time are taken.
    static void ask(const T* from, int64_t numbers) {
        asm volatile("");  // without an effect, GCC drops the call of a function that only prefetches
        for (int64_t i = 0; i < numbers; i += CACHE_LINE / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
    }

    void pack(int64_t i) {
        for (size_t p = 0; p < fields.size(); ++p) {
            const auto& part = layout.parts[p];
            if (part.use == Layout<T>::ADD) std::fill_n(fields[p][i], part.width, T(0));
            else if (part.offset != Layout<T>::IN_TENSOR) rows(part.tensor, part.width).read(i, fields[p][i]);
        }
        const T square = dot(fields[Q][i], fields[Q][i], problem.width);
        facts(i)[INVERSE_LENGTH] = square == T(0) ? T(0) : T(1) / std::sqrt(square);
        for (int64_t r = 0; r < problem.rounds; ++r) std::memcpy(facts(i) + CODES + r, &rounds[r].code[i], sizeof(Int));
    }
};

// Threads take sequences side by side; those left over, and sequences too large for that, are shared by all threads.
// work(sequence's number, threads inside, memory for it, number of the first thread)
template <class T, class Work> void each_sequence(const Problem& problem, const Layout<T>& layout, Work work) {
    const int64_t sequences = problem.batch * problem.heads, bytes = layout.bytes(problem);
    const int64_t side_by_side = problem.threads * bytes <= problem.records_bytes ? sequences / problem.threads * problem.threads : 0;
    std::vector<std::unique_ptr<LargeBuffer<T>>> memory(problem.threads);
    auto records = [&](int64_t worker) {
        if (!memory[worker]) memory[worker] = std::make_unique<LargeBuffer<T>>(bytes / sizeof(T));
        return memory[worker]->get();
    };
    parallel_for(side_by_side, problem.threads, [&](int64_t worker, int64_t n) { work(n, 1, records(worker), worker); });
    for (int64_t n = side_by_side; n < sequences; ++n) work(n, problem.threads, records(0), 0);
}

// Places of one round: a block of queries, and where the next one will begin.
struct Block {
    int64_t round, begin, end, next;
};

// Call work(tile, block) for every block of queries of a sequence, one round after another. `phases`: 1, or 2 if a block writes
// to all rows that its ranges reach; then no two segments of a phase reach the same.
template <class Tile, class T, class Work>
void each_block(const Sequence<T>& sequence, int64_t phases, std::unique_ptr<Tile>* tiles, Work work) {
    for (int64_t round = 0; round < sequence.problem.rounds; ++round) {
        const auto& segments = sequence.rounds[round].segments;
        const int64_t count = int64_t(segments.size()) - 1;
        for (int64_t phase = 0; phase < phases; ++phase)
            parallel_for((count - phase + phases - 1) / phases, sequence.threads, [&](int64_t worker, int64_t n) {
                if (!tiles[worker]) tiles[worker] = std::make_unique<Tile>(sequence.problem);
                const int64_t s = phase + n * phases, end = segments[s + 1];
                for (int64_t place = segments[s]; place < end; place += QUERIES) {
                    const int64_t next = place + QUERIES < end ? place + QUERIES : segments[std::min(s + phases, count)];
                    work(*tiles[worker], Block{round, place, std::min(place + QUERIES, end), next});
                }
            });
    }
}
