// Dropout of attention weights: the hash of reformer_lab.ops.random.keep_pairs, one number or a vector of them at a time.
#pragma once

#include "simd.h"

inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du & 0xFFFFFFFFu;
    x = (x ^ (x >> 15)) * 0x846CA68Bu & 0xFFFFFFFFu;
    return x ^ (x >> 16);
}
inline uint64_t hash_sequence(int64_t seed, int64_t sequence) {
    return mix((uint64_t(sequence) * 0x9E3779B1u + (uint64_t(seed) & 0xFFFFFFFFu)) & 0xFFFFFFFFu);
}
inline uint64_t hash_query(uint64_t sequence_hash, int64_t position) {
    return mix(sequence_hash ^ (uint64_t(position) * 0x85EBCA6Bu & 0xFFFFFFFFu));
}
inline uint64_t hash_key(uint64_t query_hash, int64_t position) {
    return mix(query_hash ^ (uint64_t(position) * 0xC2B2AE35u & 0xFFFFFFFFu));
}

// The factors of pairs (hashes of queries, positions of keys), lane by lane: `keep_factor`, or 0 if the hash is below `drop_below`.
template <class T>
inline typename Simd<T>::Vec keep_factors(typename Simd<T>::UVec query_hash, typename Simd<T>::UVec position, int64_t drop_below,
                                          double keep_factor) {
    using S = Simd<T>;
    using UInt = typename S::UInt;
    const typename S::UVec low = S::all(UInt(0xFFFFFFFFu));
    typename S::UVec x = query_hash ^ (position * S::all(UInt(0xC2B2AE35u)) & low);
    x = (x ^ (x >> 16)) * S::all(UInt(0x7FEB352Du)) & low;
    x = (x ^ (x >> 15)) * S::all(UInt(0x846CA68Bu)) & low;
    x ^= x >> 16;
    return x >= S::all(UInt(drop_below)) ? S::all(T(keep_factor)) : typename S::Vec{};
}
