/* GCC unrolls short loops before it could make vectors of them. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 8
#define SMIDGEN_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define SMIDGEN_KEEP_LOOP
#endif
