#include "threads.h"

#include <chrono>

namespace smidgen {

namespace {

// How long a thread looks again and again before it sleeps. Waking up takes about as long as a small
// layer, and a step has a dozen barriers; but waiting longer would block a core that other processes
// could use.
constexpr auto PATIENCE = std::chrono::microseconds(100);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int threads) : count_(threads), counters_(static_cast<size_t>(threads)) {
    try {
        for (int i = 1; i < threads; ++i) others_.emplace_back([this, i] { work(i); });
    } catch (...) {
        stop_.store(true);
        pass(job_number_, job_number_.load() + 1);
        for (std::thread& other : others_) other.join();
        throw;
    }
}

Team::~Team() {
    stop_.store(true);
    pass(job_number_, job_number_.load() + 1);
    for (std::thread& other : others_) other.join();
}

void Team::run(const std::function<void(int)>& job) {
    job_ = &job;
    pass(job_number_, job_number_.load(std::memory_order_relaxed) + 1);
    job(0);
    barrier([] {});
}

void Team::work(int thread) {
    for (uint64_t seen = 0;; ++seen) {
        wait(job_number_, seen);
        if (stop_.load()) return;
        (*job_)(thread);
        barrier([] {});
    }
}

void Team::pass(std::atomic<uint64_t>& word, uint64_t value) {
    word.store(value, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        { std::lock_guard<std::mutex> hold(mutex_); }
        wake_.notify_all();
    }
}

void Team::wait(const std::atomic<uint64_t>& word, uint64_t old) {
    const auto began = std::chrono::steady_clock::now();
    for (auto waited = began - began; waited < PATIENCE; waited = std::chrono::steady_clock::now() - began) {
        for (int i = 0; i < 32; ++i) {
            if (word.load(std::memory_order_acquire) != old) return;
            relax();
        }
    }
    std::unique_lock<std::mutex> hold(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(hold, [&] { return word.load(std::memory_order_seq_cst) != old; });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace smidgen
