// The sorted order of each hash round of one sequence, and what each of its places may see.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensor.h"

// What a call is told: the fields and their order are those of `_Problem` in __init__.py.
struct Problem {
    Tensor4 qk, v;           // (batch, heads, length, width), (batch, heads, length, width_v)
    const int64_t* buckets;  // (batch, heads, rounds, length)
    const uint8_t* padding;  // (batch, length), or null
    int64_t batch, heads, length, width, width_v, rounds;
    int64_t chunk_length, before, after;
    int64_t causal, whole_buckets, cross_bucket, corrected;
    int64_t threads;
    int64_t records_bytes;   // at most so many for the records of sequences that are worked on side by side
    double logit_scale;
    double keep_factor;     // 1 / (1 - p), 1 without dropout
    int64_t drop_below;     // a pair is dropped if its hash is below p * 2^32; 0 without dropout
    int64_t dropout_seed;
};

// One round. A place is a position in the sorted order; tokens that are padding have none.
//
// Whom a place may see is one range of places, whatever the options: the bucket, cut by the window of chunks, ended by
// the place itself if causal (in a bucket, earlier places are earlier tokens). Only with `cross_bucket` must the
// positions be compared as well. Both ends of the range never go back from one place to the next.
template <class Int> struct Round {
    std::vector<int32_t> order;        // position at each place
    std::vector<int32_t> first, last;  // the range [first, last) of places
    std::vector<Int> code;             // by position: the round finds (i, j) if 0 <= code_i - code_j + after <= before + after
    // Places at which a segment begins, and the end. Of every second segment, no two reach a common place with their ranges.
    std::vector<int32_t> segments;
};

constexpr int64_t SEGMENT = 1024;  // least places of a segment

// Sort stably by bucket: counting where the ids are dense, as hashing gives them.
inline void sort_by_bucket(const int64_t* bucket, std::vector<int32_t>& order, std::vector<int32_t>& spare) {
    if (order.empty()) return;
    int64_t low = bucket[order[0]], high = low;
    for (int32_t position : order) {
        low = std::min(low, bucket[position]);
        high = std::max(high, bucket[position]);
    }
    const uint64_t span = uint64_t(high) - uint64_t(low);
    if (span >= 4 * order.size() + 1024) {
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return bucket[a] < bucket[b]; });
        return;
    }
    std::vector<int32_t> start(span + 2, 0);
    for (int32_t position : order) ++start[bucket[position] - low + 1];
    for (uint64_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
    spare = order;
    for (int32_t position : spare) order[start[bucket[position] - low]++] = position;
}

template <class Int> Round<Int> make_round(const Problem& problem, int64_t sequence, int64_t round) {
    const int64_t length = problem.length, m = problem.chunk_length;
    const int64_t* bucket = problem.buckets + (sequence * problem.rounds + round) * length;
    const uint8_t* padding = problem.padding ? problem.padding + sequence / problem.heads * length : nullptr;
    Round<Int> result;
    auto& order = result.order;
    order.reserve(length);
    for (int64_t i = 0; i < length; ++i)
        if (!padding || !padding[i]) order.push_back(int32_t(i));
    std::vector<int32_t> spare;
    sort_by_bucket(bucket, order, spare);

    const int64_t count = order.size();
    result.first.resize(count);
    result.last.resize(count);
    result.code.assign(length, 0);
    const int64_t apart = problem.before + problem.after + 1;
    int64_t rank = 0;
    for (int64_t begin = 0, end; begin < count; begin = end, ++rank) {
        end = begin + 1;
        while (end < count && bucket[order[end]] == bucket[order[begin]]) ++end;
        for (int64_t p = begin; p < end; ++p) {
            const int64_t chunk = p / m;
            int64_t low = std::max<int64_t>(0, (chunk - problem.before) * m);
            int64_t high = std::min(count, (chunk + problem.after + 1) * m);
            if (problem.whole_buckets) low = begin, high = end;
            else if (!problem.cross_bucket) low = std::max(low, begin), high = std::min(high, end);
            if (problem.causal && !problem.cross_bucket) high = p;
            result.first[p] = int32_t(low);
            result.last[p] = int32_t(high);
            result.code[order[p]] = Int(problem.whole_buckets ? rank : problem.cross_bucket ? chunk : chunk + rank * apart);
        }
    }

    result.segments.push_back(0);
    for (int64_t p = SEGMENT; p < count; ++p) {
        const int32_t begin = result.segments.back();  // of the last segment, and the end of the one before it
        const int32_t reached = begin ? std::max(begin, result.last[begin - 1]) : 0;
        if (p - begin >= SEGMENT && result.first[p] >= reached) result.segments.push_back(int32_t(p));
    }
    if (count) result.segments.push_back(int32_t(count));
    return result;
}
