#include "loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace smidgen {

double cross_entropy(float* scores, const int64_t* labels, int64_t images, int classes, double smoothing,
                     int64_t* correct) {
    double loss = 0.0;
    int64_t hits = 0;
    std::vector<double> exponentials(static_cast<size_t>(classes));
    for (int64_t i = 0; i < images; ++i) {
        float* row = scores + i * classes;
        const int64_t best = std::max_element(row, row + classes) - row;
        const double most = row[best];
        double total = 0.0, plain = 0.0;
        for (int k = 0; k < classes; ++k) {
            exponentials[k] = std::exp(row[k] - most);
            total += exponentials[k];
            plain += row[k];
        }
        const double log_total = most + std::log(total);
        loss += log_total - (1.0 - smoothing) * row[labels[i]] - smoothing * plain / classes;
        hits += best == labels[i];
        for (int k = 0; k < classes; ++k) {
            const double target = (k == labels[i] ? 1.0 - smoothing : 0.0) + smoothing / classes;
            row[k] = static_cast<float>((exponentials[k] / total - target) / static_cast<double>(images));
        }
    }
    *correct = hits;
    return loss / static_cast<double>(images);
}

}  // namespace smidgen
