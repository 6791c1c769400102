// SOAP for all parameters of a network; smidgen/engines/soap.py has the formulas.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace smidgen {

// A parameter of at most one dimension: each value is an axis of its own.
struct SoapVector {
    int count;
    float* weights;
    const float* gradients;
    float *mean, *square;
};

class SoapSteps {
public:
    SoapSteps(const Kernels& kernels, std::vector<SoapMatrix> matrices, std::vector<SoapVector> vectors);

    // Reads the axes again, which have changed.
    void renewed();
    // One step. The result does not depend on the number of threads.
    void step(Team& team, const SoapFactors& factors);

private:
    const Kernels& kernels_;
    std::vector<SoapMatrix> matrices_;
    std::vector<SoapVector> vectors_;
    AlignedFloats memory_;       // scratch and padded axes of one matrix after another
    std::vector<float*> padded_;  // where its axes are
};

}  // namespace smidgen
