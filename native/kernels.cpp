// All kernels at one instruction level: this file is compiled once for each, with SMIDGEN_LEVEL
// naming it and the compiler's flags saying what it may use.
#include "kernels.h"

#include <chrono>

#include "conv.h"
#include "elementwise.h"
#include "images.h"
#include "random.h"
#if defined(__AVX512BF16__)
#include "conv16.h"
#endif

#define SMIDGEN_TEXT(x) #x
#define SMIDGEN_NAME(x) SMIDGEN_TEXT(x)

namespace smidgen {
namespace SMIDGEN_LEVEL {

// Independent chains of multiply-adds in registers, as fast as the CPU goes.
static double peak(bool bfloat16, int64_t rounds) {
    constexpr int CHAINS = 12;
    const auto now = [] { return std::chrono::steady_clock::now(); };
    Vec chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = splat(0.1f * static_cast<float>(i));
    volatile float factor = 0.999f, term = 0.001f;
    const auto began = now();
    if (bfloat16) {
#if defined(__AVX512BF16__)
        peak16(chain, CHAINS, rounds);
#else
        return 0.0;
#endif
    } else {
        const Vec a = splat(factor), b = splat(term);
        for (int64_t i = 0; i < rounds; ++i)
            _Pragma("GCC unroll 12") for (int k = 0; k < CHAINS; ++k) chain[k] = chain[k] * a + b;
    }
    const double seconds = std::chrono::duration<double>(now() - began).count();
    float kept = 0.0f;
    for (int i = 0; i < CHAINS; ++i) kept += sum(chain[i]);
    volatile float used = kept;
    (void)used;
    return static_cast<double>(rounds) * CHAINS * LANES * (bfloat16 ? 2 : 1) / seconds;
}

extern const Kernels KERNELS = {
    SMIDGEN_NAME(SMIDGEN_LEVEL),
    {packed_room, pack_forward, pack_backward, scratch_room, conv_forward, conv_backward, conv_weights},
#if defined(__AVX512BF16__)
    &PRODUCTS16,
#else
    nullptr,
#endif
    relu_mask,
    moments,
    norm_forward,
    norm_sums,
    norm_backward,
    activation_forward,
    activation_backward,
    max_forward,
    max_backward,
    average_forward,
    average_backward,
    dropout_forward,
    dropout_backward,
    sum_values,
    copy_values,
    gather_block,
    scatter_block,
    distort_room,
    distort,
    smooth,
    peak,
};

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
