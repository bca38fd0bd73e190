/* The intrinsics of Arm's C Language Extensions that exported code uses, in portable C, so that its path for them runs on any machine. */
#include <stdint.h>

static inline int16_t half_of(int32_t pair, int which)
{
    return (int16_t)(uint16_t)((uint32_t)pair >> (16 * which) & 0xffffu);
}

static inline int32_t __smlad(int32_t a, int32_t b, int32_t sum)
{
    const int32_t low = half_of(a, 0) * half_of(b, 0), high = half_of(a, 1) * half_of(b, 1);
    return (int32_t)((uint32_t)low + (uint32_t)high + (uint32_t)sum);
}
