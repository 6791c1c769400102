// All kernels at one instruction level: this file is compiled once for each, with SMIDGEN_LEVEL
// naming it and the compiler's flags saying what it may use.
#include "kernels.h"

#include <chrono>

#include "activation_kernels.h"
#include "conv.h"
#include "elementwise.h"
#include "images.h"
#include "random.h"
#include "separable.h"
#include "soap.h"
#if defined(__AVX512BF16__)
#include "separable16.h"
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

#if defined(__AVX512BF16__)
static constexpr Convolutions PRODUCTS16 = {.packed_floats = packed_floats16,
                                            .pack_forward = pack_forward16,
                                            .pack_backward = pack_backward16,
                                            .scratch_floats = scratch_floats16,
                                            .conv_forward = conv_forward16,
                                            .conv_backward = conv_backward16,
                                            .conv_weights = conv_weights16,
                                            .separable_prepare = separable_prepare<Rounded>,
                                            .separable_scratch = separable_scratch<Rounded>,
                                            .separable_forward = separable_forward<Rounded>,
                                            .separable_backward = separable_backward<Rounded>};
#endif

extern const Kernels KERNELS = {
    .name = SMIDGEN_NAME(SMIDGEN_LEVEL),
    .products32 = {.packed_floats = packed_floats,
                   .pack_forward = pack_forward,
                   .pack_backward = pack_backward,
                   .scratch_floats = scratch_floats,
                   .conv_forward = conv_forward,
                   .conv_backward = conv_backward,
                   .conv_weights = conv_weights,
                   .separable_prepare = separable_prepare<Exact>,
                   .separable_scratch = separable_scratch<Exact>,
                   .separable_forward = separable_forward<Exact>,
                   .separable_backward = separable_backward<Exact>},
#if defined(__AVX512BF16__)
    .products16 = &PRODUCTS16,
#else
    .products16 = nullptr,
#endif
    .relu_mask = relu_mask,
    .moments = moments,
    .norm_forward = norm_forward,
    .norm_sums = norm_sums,
    .norm_backward = norm_backward,
    .activation_forward = activation_forward,
    .activation_backward = activation_backward,
    .max_forward = max_forward,
    .max_backward = max_backward,
    .average_forward = average_forward,
    .average_backward = average_backward,
    .dropout_forward = dropout_forward,
    .dropout_backward = dropout_backward,
    .sum = sum_values,
    .copy = copy_values,
    .gather_block = gather_block,
    .scatter_block = scatter_block,
    .augment_scratch_bytes = augment_scratch_bytes,
    .augment = augment,
    .smooth = smooth,
    .soap_step = soap_step,
    .soap_adam = soap_adam,
    .peak = peak,
};

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
