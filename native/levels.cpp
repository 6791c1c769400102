// Which instruction levels were built in, and which of them this CPU can run.
#include "kernels.h"

namespace smidgen {

namespace baseline { extern const Kernels KERNELS; }
#if defined(SMIDGEN_HAS_AVX2)
namespace avx2 { extern const Kernels KERNELS; }
#endif
#if defined(SMIDGEN_HAS_AVX512)
namespace avx512 { extern const Kernels KERNELS; }
#endif
#if defined(SMIDGEN_HAS_AVX512BF16)
namespace avx512bf16 { extern const Kernels KERNELS; }
#endif

const Kernels* const* available_kernels() {
    static const Kernels* found[5] = {};
    static const bool once = [] {
        int count = 0;
        found[count++] = &baseline::KERNELS;
#if defined(__x86_64__)
        __builtin_cpu_init();
#if defined(SMIDGEN_HAS_AVX2)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &avx2::KERNELS;
#endif
#if defined(SMIDGEN_HAS_AVX512)
        const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("fma");
        if (wide) found[count++] = &avx512::KERNELS;
#if defined(SMIDGEN_HAS_AVX512BF16)
        if (wide && __builtin_cpu_supports("avx512bf16")) found[count++] = &avx512bf16::KERNELS;
#endif
#endif
#endif
        return count > 0;
    }();
    (void)once;
    return found;
}

}  // namespace smidgen
