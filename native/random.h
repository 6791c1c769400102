// Counter-based random numbers (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): Philox4x32 over sixteen lanes, with 7 rounds, the fewest that the paper found to pass
// every test.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

struct VecWords {
    Words part[PARTS];
};

// High and low halves of the products of 32-bit words with a constant.
SMIDGEN_INLINE void wide_product(const Words& a, uint32_t b, Words& high, Words& low) {
#if defined(__AVX512F__)
    const __m512i x = (__m512i)a, m = _mm512_set1_epi64(b);
    const __m512i even = _mm512_mul_epu32(x, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    high = (Words)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    low = (Words)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
    const __m256i x = (__m256i)a, m = _mm256_set1_epi64x(b);
    const __m256i even = _mm256_mul_epu32(x, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), m);
    high = (Words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    low = (Words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
    for (int i = 0; i < WIDTH; ++i) {
        const uint64_t product = static_cast<uint64_t>(a[i]) * b;
        high[i] = static_cast<uint32_t>(product >> 32);
        low[i] = static_cast<uint32_t>(product);
    }
#endif
}

// Four words a lane for counter (c0, c1 + lane, c2, 0); `c1` differs between lanes.
SMIDGEN_INLINE void philox(uint64_t key, uint32_t c0, uint32_t first_image, uint32_t c2, VecWords (&out)[4]) {
    SMIDGEN_EACH {
        Words a = c0 - Words{}, b = Words{}, c = c2 - Words{}, d = Words{};
        for (int i = 0; i < WIDTH; ++i) b[i] = first_image + static_cast<uint32_t>(p * WIDTH + i);
        uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
        for (int round = 0; round < 7; ++round) {
            Words high0, low0, high1, low1;
            wide_product(a, 0xD2511F53u, high0, low0);
            wide_product(c, 0xCD9E8D57u, high1, low1);
            a = high1 ^ b ^ k0;
            b = low1;
            c = high0 ^ d ^ k1;
            d = low0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        out[0].part[p] = a;
        out[1].part[p] = b;
        out[2].part[p] = c;
        out[3].part[p] = d;
    }
}

// One bit for each lane that is not 0.
SMIDGEN_INLINE uint16_t bits_of(const Ints (&lanes)[PARTS]) {
    uint32_t bits = 0;
    SMIDGEN_EACH {
#if defined(__AVX512F__)
        bits |= static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)lanes[p])) << (p * WIDTH);
#elif defined(__AVX2__)
        bits |= static_cast<uint32_t>(_mm256_movemask_ps((__m256)lanes[p])) << (p * WIDTH);
#else
        for (int i = 0; i < WIDTH; ++i) bits |= (lanes[p][i] ? 1u : 0u) << (p * WIDTH + i);
#endif
    }
    return static_cast<uint16_t>(bits);
}

// v where the lane's bit is set, else 0.
SMIDGEN_INLINE Vec where_bits(uint16_t bits, const Vec& v) {
    Vec out;
    SMIDGEN_EACH {
        Ints lane;
        for (int i = 0; i < WIDTH; ++i) lane[i] = 1 << (p * WIDTH + i);
        out.part[p] = (((static_cast<int32_t>(bits) - Ints{}) & lane) != 0) ? v.part[p] : Floats{};
    }
    return out;
}

// 16 random bits a lane at or above `least`?
SMIDGEN_INLINE void decide(const VecWords (&words)[4], int i, const Words& least, Ints (&keep)[PARTS]) {
    SMIDGEN_EACH {
        const Words bits = i % 2 ? words[i / 2].part[p] >> 16 : words[i / 2].part[p] & 0xFFFFu;
        keep[p] = (Ints)(bits >= least);
    }
}

SMIDGEN_INLINE Vec where_kept(const Ints (&keep)[PARTS], const Vec& v) {
    Vec out;
    SMIDGEN_EACH out.part[p] = keep[p] ? v.part[p] : Floats{};
    return out;
}

SMIDGEN_INLINE float kept_scale(int dropped) { return 65536.0f / static_cast<float>(65536 - dropped); }

// Drops each value with probability dropped / 65536 and scales the rest, by 16 random bits a value.
// `mask` takes a word a pixel, a bit for each image whose value was kept.
inline void dropout_forward(uint64_t key, int layer, int64_t first_image, int dropped, const float* x, float* y,
                            uint16_t* mask, int64_t pixels) {
    const float scale = kept_scale(dropped);
    const Words least = static_cast<uint32_t>(dropped) - Words{};
    for (int64_t first = 0; first < pixels; first += 8) {
        VecWords words[4];
        philox(key, static_cast<uint32_t>(first / 8), static_cast<uint32_t>(first_image), static_cast<uint32_t>(layer),
               words);
        const int count = static_cast<int>(pixels - first < 8 ? pixels - first : 8);
        const auto one = [&](int i) SMIDGEN_LAMBDA {
            Ints keep[PARTS];
            decide(words, i, least, keep);
            mask[first + i] = bits_of(keep);
            store(y + (first + i) * LANES, where_kept(keep, load(x + (first + i) * LANES) * scale));
        };
        if (count == 8)
            SMIDGEN_UNROLL for (int i = 0; i < 8; ++i) one(i);
        else
            for (int i = 0; i < count; ++i) one(i);
    }
}

inline void dropout_backward(int dropped, const uint16_t* mask, const float* dy, float* dx, int64_t pixels, bool add) {
    const float scale = kept_scale(dropped);
    for (int64_t i = 0; i < pixels; ++i) {
        Vec v = where_bits(mask[i], load(dy + i * LANES) * scale);
        if (add) v += load(dx + i * LANES);
        store(dx + i * LANES, v);
    }
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
