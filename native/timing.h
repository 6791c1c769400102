// Time of each layer's passes, for profiling.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace smidgen {

// Backward: both gradients in one pass.
enum Pass { Forward, Statistics, InputGradient, WeightGradient, Backward, PASSES };
constexpr const char* PASS_NAMES[PASSES] = {"forward", "statistics", "input gradient", "weight gradient", "backward"};

class LayerTimer {
public:
    // Starts or stops taking time; what was taken before is forgotten.
    void set(bool on) {
        on_ = on;
        std::fill(seconds_.begin(), seconds_.end(), 0.0);
    }

    void reserve(int threads, size_t operations) {
        operations_ = operations;
        seconds_.resize(static_cast<size_t>(threads) * operations * PASSES);
    }

    // Calls work(), and adds its time where time is taken.
    template <class F>
    void time(int operation, Pass pass, int thread, const F& work) {
        if (!on_) return work();
        const auto began = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began;
        seconds_[(thread * operations_ + operation) * PASSES + pass] += elapsed.count();
    }

    // Seconds, added over threads.
    double seconds(size_t operation, int pass) const {
        double total = 0.0;
        for (size_t i = operation * PASSES + pass; i < seconds_.size(); i += operations_ * PASSES) total += seconds_[i];
        return total;
    }

private:
    bool on_ = false;
    size_t operations_ = 0;
    std::vector<double> seconds_;  // [thread][operation][pass]
};

}  // namespace smidgen
