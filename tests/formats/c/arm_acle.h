/* The intrinsics of Arm's C Language Extensions that exported code uses, in portable C, so that its path for them runs on any machine. */
#include <stdint.h>

static inline int32_t half_of(int32_t pair, int which)
{
    return (int16_t)(uint16_t)((uint32_t)pair >> (16 * which) & 0xffffu);
}

static inline int32_t pair_of(int32_t low, int32_t high)
{
    return (int32_t)(((uint32_t)low & 0xffffu) | (uint32_t)high << 16);
}

static inline int32_t wrapped(int32_t sum, int32_t product)
{
    return (int32_t)((uint32_t)sum + (uint32_t)product);
}

static inline int32_t __smlabb(int32_t a, int32_t b, int32_t sum)
{
    return wrapped(sum, half_of(a, 0) * half_of(b, 0));
}

static inline int32_t __smlatt(int32_t a, int32_t b, int32_t sum)
{
    return wrapped(sum, half_of(a, 1) * half_of(b, 1));
}

static inline int32_t __smlad(int32_t a, int32_t b, int32_t sum)
{
    return __smlatt(a, b, __smlabb(a, b, sum));
}

static inline int32_t __sxtb16(int32_t bytes)
{
    return pair_of((int8_t)(uint8_t)((uint32_t)bytes & 0xffu), (int8_t)(uint8_t)((uint32_t)bytes >> 16 & 0xffu));
}

static inline int32_t __sadd16(int32_t a, int32_t b)
{
    return pair_of(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1));
}

static inline int32_t __sxtab16(int32_t a, int32_t bytes)
{
    return __sadd16(a, __sxtb16(bytes));
}

static inline uint32_t __uxtab16(uint32_t a, uint32_t bytes)
{
    return (uint32_t)__sadd16((int32_t)a, (int32_t)(bytes & 0xff00ffu));
}
