/* For two pixels, the sums of what they depend on times the weights of four or two outputs, of each output's four. A
   patch holds, for each pair of inputs, the first pixel's two and the second's two; another behind it is that of two
   more pixels. The weights are in the order in which they are used.
   With SMIDGEN_DSP, two products are one instruction; the sums are the same. Weights of 4 bits are 8 more than they
   stand for, which is taken off the sums later. */
#ifndef SMIDGEN_DSP
#if defined(__ARM_FEATURE_SIMD32) && defined(__ARMEL__)
#define SMIDGEN_DSP 1
#else
#define SMIDGEN_DSP 0
#endif
#endif
/* Outputs at a time: processors with few registers would only move four back and forth. */
#ifndef SMIDGEN_OUTPUTS
#if defined(__AVR__) || (defined(__ARM_ARCH) && !defined(__ARM_FEATURE_DSP) && __ARM_ARCH <= 6)
#define SMIDGEN_OUTPUTS 2
#else
#define SMIDGEN_OUTPUTS 4
#endif
#endif
#if SMIDGEN_DSP
#include <arm_acle.h>

static inline uint32_t $word(const void *from)
{
    uint32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    return word;
}

static inline int32_t $two(uint32_t a, uint32_t b, int32_t sum)
{
    return __smlad((int16x2_t)a, (int16x2_t)b, sum);
}
@if not bits4

static inline uint32_t $halves(uint32_t word)
{
    return (uint32_t)__sxtb16((int8x4_t)word);
}
@end
#endif

/* Kept apart, so that the sums have all registers. */
#ifdef __GNUC__
#define SMIDGEN_APART __attribute__((noinline))
#else
#define SMIDGEN_APART
#endif
/* With -Os, GCC moves sums between registers and stack in the loops in which all the time is spent. */
#if defined(__OPTIMIZE_SIZE__) && defined(__GNUC__) && !defined(__clang__) && SMIDGEN_OUTPUTS == 4
#define SMIDGEN_INNER __attribute__((noinline, optimize("O2")))
#else
#define SMIDGEN_INNER SMIDGEN_APART
#endif

#if SMIDGEN_OUTPUTS == 4
static SMIDGEN_INNER void $dot4(const uint16_t *patch, const SMIDGEN_FLASH {{weight}} *w, int32_t pairs, int32_t *sums)
{
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0, a2 = 0, b2 = 0, a3 = 0, b3 = 0;
    const uint16_t *const end = patch + 4 * pairs;

    do { /* loops that run at least once save a jump */
#if SMIDGEN_DSP
        const uint32_t x = $word(patch), y = $word(patch + 2);
        uint32_t u = $word(w), v;
@if bits4
        v = u & 0x000f000fu, a0 = $two(x, v, a0), b0 = $two(y, v, b0);
        v = u >> 4 & 0x000f000fu, a1 = $two(x, v, a1), b1 = $two(y, v, b1);
        v = u >> 8 & 0x000f000fu, a2 = $two(x, v, a2), b2 = $two(y, v, b2);
        v = u >> 12 & 0x000f000fu, a3 = $two(x, v, a3), b3 = $two(y, v, b3);
@else
        v = $halves(u), a0 = $two(x, v, a0), b0 = $two(y, v, b0);
        v = $halves(u >> 8 | u << 24), a1 = $two(x, v, a1), b1 = $two(y, v, b1);
        u = $word(w + 4);
        v = $halves(u), a2 = $two(x, v, a2), b2 = $two(y, v, b2);
        v = $halves(u >> 8 | u << 24), a3 = $two(x, v, a3), b3 = $two(y, v, b3);
@end
#else
        int32_t x = patch[0], y = patch[2], v;
@if bits4
        v = w[0] & 15, a0 += x * v, b0 += y * v;
        v = w[0] >> 4, a1 += x * v, b1 += y * v;
        v = w[1] & 15, a2 += x * v, b2 += y * v;
        v = w[1] >> 4, a3 += x * v, b3 += y * v;
        x = patch[1], y = patch[3];
        v = w[2] & 15, a0 += x * v, b0 += y * v;
        v = w[2] >> 4, a1 += x * v, b1 += y * v;
        v = w[3] & 15, a2 += x * v, b2 += y * v;
        v = w[3] >> 4, a3 += x * v, b3 += y * v;
@else
        v = w[0], a0 += x * v, b0 += y * v;
        v = w[1], a1 += x * v, b1 += y * v;
        v = w[4], a2 += x * v, b2 += y * v;
        v = w[5], a3 += x * v, b3 += y * v;
        x = patch[1], y = patch[3];
        v = w[2], a0 += x * v, b0 += y * v;
        v = w[3], a1 += x * v, b1 += y * v;
        v = w[6], a2 += x * v, b2 += y * v;
        v = w[7], a3 += x * v, b3 += y * v;
@end
#endif
        patch += 4;
        w += {{pair_bytes}};
    } while (patch != end);
    sums[0] = a0, sums[1] = b0, sums[4] = a1, sums[5] = b1;
    sums[8] = a2, sums[9] = b2, sums[12] = a3, sums[13] = b3;
}
#endif

/* Of two outputs, alone or in a block of four: `step` is from one pair of inputs to the next. */
static SMIDGEN_INNER void $dot2(const uint16_t *patch, const SMIDGEN_FLASH {{weight}} *w, int32_t step, int32_t pairs, int32_t *sums)
{
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0;
    const uint16_t *const end = patch + 4 * pairs;

    do {
        int32_t x = patch[0], y = patch[2], v;
@if bits4
        const uint8_t first = w[0], second = w[step / 2];
        v = first & 15, a0 += x * v, b0 += y * v;
        v = first >> 4, a1 += x * v, b1 += y * v;
        x = patch[1], y = patch[3];
        v = second & 15, a0 += x * v, b0 += y * v;
        v = second >> 4, a1 += x * v, b1 += y * v;
@else
        v = w[0], a0 += x * v, b0 += y * v;
        v = w[1], a1 += x * v, b1 += y * v;
        x = patch[1], y = patch[3];
        v = w[2], a0 += x * v, b0 += y * v;
        v = w[3], a1 += x * v, b1 += y * v;
@end
        patch += 4;
        w += step;
    } while (patch != end);
    sums[0] = a0, sums[1] = b0, sums[4] = a1, sums[5] = b1;
}
