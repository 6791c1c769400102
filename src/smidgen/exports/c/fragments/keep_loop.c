/* GCC unrolls short loops before it could make vectors of them. */
#if defined(__GNUC__) && !defined(__clang__)
#define SMIDGEN_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define SMIDGEN_KEEP_LOOP
#endif
