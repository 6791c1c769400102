// Threads that work on one job together. They sleep between jobs: PyTorch's own threads, and other
// processes, have the cores then.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace smidgen {

// A job of several threads: pieces of work, each done by exactly one of them, with barriers between.
class Team {
public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return count_; }

    // Runs job(thread) on every thread, the caller being thread 0; returns when all are done.
    void run(const std::function<void(int)>& job);

    // Within a job, called by every thread with equal arguments: calls work(piece) for each piece,
    // then `then()` on one thread, and returns on all when that is done. Which thread takes which
    // piece must not matter to the result.
    template <class Work, class Then>
    void phase(int thread, int pieces, const Work& work, const Then& then) {
        claim(thread, pieces, work);
        barrier(then);
    }

private:
    struct alignas(64) Counter {
        std::atomic<int> next{0};
    };

    // Each thread begins with its own share, so that it finds in its cache what it left there, and
    // then helps with the others'.
    template <class Work>
    void claim(int thread, int pieces, const Work& work) {
        for (int k = 0; k < count_; ++k) {
            const int owner = (thread + k) % count_;
            const int first = static_cast<int>(static_cast<int64_t>(owner) * pieces / count_);
            const int last = static_cast<int>(static_cast<int64_t>(owner + 1) * pieces / count_);
            for (;;) {
                const int piece = first + counters_[owner].next.fetch_add(1, std::memory_order_relaxed);
                if (piece >= last) break;
                work(piece);
            }
        }
    }

    template <class Then>
    void barrier(const Then& then) {
        const uint64_t turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
            arrived_.store(0, std::memory_order_relaxed);
            for (int i = 0; i < count_; ++i) counters_[i].next.store(0, std::memory_order_relaxed);
            then();
            pass(turn_, turn + 1);
        } else {
            wait(turn_, turn);
        }
    }

    void pass(std::atomic<uint64_t>& word, uint64_t value);
    void wait(const std::atomic<uint64_t>& word, uint64_t old);
    void work(int thread);

    int count_;
    std::vector<std::thread> others_;
    std::vector<Counter> counters_;
    const std::function<void(int)>* job_ = nullptr;
    alignas(64) std::atomic<uint64_t> turn_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint64_t> job_number_{0};
    std::atomic<bool> stop_{false};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

}  // namespace smidgen
