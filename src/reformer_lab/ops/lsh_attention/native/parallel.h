// Threads for the length of one loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// Call body(worker, i) for every i below `count`, on up to `threads` threads: which one takes which i is left to chance.
// No pool stays behind (it would fight with torch's); starting a thread costs some 20 microseconds.
template <class Body> void parallel_for(int64_t count, int64_t threads, Body body) {
    threads = std::min(threads, count);
    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_lock;
    auto work = [&](int64_t worker) {
        try {
            for (int64_t i = next++; i < count; i = next++) body(worker, i);
        } catch (...) {
            std::lock_guard<std::mutex> hold(error_lock);
            error = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run share the work.
    }
    work(0);
    for (auto& thread : others) thread.join();
    if (error) std::rethrow_exception(error);
}
