/* Arm's instructions for two 16-bit numbers in a word, where there are any. */
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && !defined(__ARM_BIG_ENDIAN) && defined(__GNUC__)
#include <arm_acle.h>
#define DSP 1
typedef int32_t __attribute__((may_alias)) word_t; /* a pair of a column's codes, aligned */

static inline uint32_t word_at(const void *x)
{
    uint32_t word;
    memcpy(&word, x, sizeof word);
    return word;
}
#else
#define DSP 0
#endif
#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
