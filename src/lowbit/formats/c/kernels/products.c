/* sum + both products of a pair of weights' fields and two codes, modulo 2^32. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>

static inline uint32_t both(uint32_t sum, uint32_t word, uint32_t shift, uint32_t mask, const int16_t *x)
{
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (uint32_t)__smlad((int32_t)(word >> shift & mask * 0x10001u), (int32_t)pair, (int32_t)sum);
}
#else
static inline uint32_t both(uint32_t sum, uint32_t word, uint32_t shift, uint32_t mask, const int16_t *x)
{
    const int32_t low = (int32_t)(word >> shift & mask), high = (int32_t)(word >> (shift + 16) & mask);
    return sum + (uint32_t)(low * x[0]) + (uint32_t)(high * x[1]);
}
#endif

/* Two rows of weights times two columns, or times one. */
