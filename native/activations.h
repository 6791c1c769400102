// The activations, one row each. A row `name` makes ActivationFunction::name, the name that Python passes, and
// the dispatch to `struct name` in activation_kernels.h, which holds the function and its slope.
#pragma once

#define SMIDGEN_ACTIVATIONS(ROW) \
    ROW(relu)                    \
    ROW(leaky_relu)              \
    ROW(clamp)                   \
    ROW(hardswish)               \
    ROW(gelu)                    \
    ROW(silu)                    \
    ROW(sigmoid)                 \
    ROW(tanh)

namespace smidgen {

#define SMIDGEN_ENUMERATOR(name) name,
enum class ActivationFunction { SMIDGEN_ACTIVATIONS(SMIDGEN_ENUMERATOR) };
#undef SMIDGEN_ENUMERATOR

// The names, in the order of the enumerators.
#define SMIDGEN_QUOTED(name) #name,
constexpr const char* ACTIVATION_NAMES[] = {SMIDGEN_ACTIVATIONS(SMIDGEN_QUOTED)};
#undef SMIDGEN_QUOTED

// The slope of leaky_relu below 0 is `low`; clamp limits to [low, high]; the others use neither.
struct ActivationLimits {
    float low = 0.0f, high = 0.0f;
};

}  // namespace smidgen
