#include "loss.h"

#include <algorithm>
#include <cmath>

namespace smidgen {

double cross_entropy(float* scores, const int64_t* labels, int64_t images, int classes, double smoothing,
                     int64_t* correct) {
    double loss = 0.0;
    int64_t hits = 0;
    for (int64_t i = 0; i < images; ++i) {
        float* row = scores + i * classes;
        const int64_t best = std::max_element(row, row + classes) - row;
        const double most = row[best];
        double total = 0.0, plain = 0.0;
        for (int k = 0; k < classes; ++k) total += std::exp(row[k] - most), plain += row[k];
        const double log_total = most + std::log(total);
        loss += log_total - (1.0 - smoothing) * row[labels[i]] - smoothing * plain / classes;
        hits += best == labels[i];
        for (int k = 0; k < classes; ++k) {
            const double target = (k == labels[i] ? 1.0 - smoothing : 0.0) + smoothing / classes;
            row[k] = static_cast<float>((std::exp(row[k] - log_total) - target) / static_cast<double>(images));
        }
    }
    *correct = hits;
    return loss / static_cast<double>(images);
}

}  // namespace smidgen
