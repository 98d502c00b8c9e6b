// LSH attention and local attention on CPUs, as Python calls it: through ctypes from the modules beside this file and from
// those of local attention, so there is no header of torch or
// Python here. The mathematics: ../README.md.

#include "backward.h"
#include "forward.h"
#include "hash.h"
#include "local.h"

namespace {

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

#define LSH_PASSES(NAME, T)                                                                                                      \
    int lsh_forward_##NAME(const Problem* problem, const Tensor4* output, T* logsumexp, T* maximum, T* total) {                  \
        return guarded([&] { forward<T>(*problem, *output, {logsumexp, maximum, total}); });                                     \
    }                                                                                                                            \
    int lsh_backward_##NAME(const Problem* problem, const Tensor4* output, const Tensor4* d_output, const T* maximum,            \
                            const T* total, const T* d_logsumexp, const Tensor4* d_qk, const Tensor4* d_v) {                     \
        return guarded([&] { backward<T>(*problem, *output, *d_output, {maximum, total, d_logsumexp}, *d_qk, *d_v); });          \
    }

LSH_PASSES(float, float)
LSH_PASSES(double, double)

#define LOCAL_PASSES(NAME, T)                                                                                                    \
    int local_forward_##NAME(const local::Problem* problem, const Tensor4* output, T* logsumexp) {                               \
        return guarded([&] { local::forward<T>(*problem, *output, logsumexp); });                                                \
    }                                                                                                                            \
    int local_backward_##NAME(const local::Problem* problem, const Tensor4* output, const Tensor4* d_output, const T* logsumexp, \
                              const Tensor4* d_q, const Tensor4* d_k, const Tensor4* d_v) {                                      \
        return guarded([&] { local::backward<T>(*problem, *output, *d_output, logsumexp, *d_q, *d_k, *d_v); });                  \
    }

LOCAL_PASSES(float, float)
LOCAL_PASSES(double, double)
}
