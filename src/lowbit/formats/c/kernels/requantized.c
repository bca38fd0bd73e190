@if double
/* n * m / 2^(31 - e) as TensorFlow Lite computes it: half up, then, where e is negative, half away from zero. What is beyond every
   code is only far away. */
INLINE int32_t requantized(int32_t n, int32_t m, int32_t e)
{
    const int64_t product = (int64_t)n * m;
    if (e < 0) {
        const int32_t a = (int32_t)((product + ((int64_t)1 << 30)) >> 31);
        return (((a - (a < 0)) >> (-e - 1)) + 1) >> 1;
    } else {
        const int64_t a = (product + ((int64_t)1 << (30 - e))) >> (31 - e);
        return a > 0x3fffffff ? 0x3fffffff : a < -0x3fffffff ? -0x3fffffff : (int32_t)a;
    }
}
@end
@if single
/* n * m / 2^(31 - e), half up. */
INLINE int32_t requantized(int32_t n, int32_t m, int32_t e)
{
    const int64_t a = (((int64_t)n * m >> (30 - e)) + 1) >> 1;
    return a > 0x3fffffff ? 0x3fffffff : a < -0x3fffffff ? -0x3fffffff : (int32_t)a;
}
@end
@if sixteen
/* n * m / 2^k, half up, for an m of 16 bits and either sign: from the halves of n, where the product may have more than 32 bits. */
INLINE int32_t requantized(int32_t n, int32_t m, int32_t k)
{
    if (m < 0) {
        n = -n;
        m = -m;
    }
    if (k > 16) {
        const uint32_t low = ((uint32_t)n & 0xffffu) * (uint32_t)m >> 16;
        return ((((n >> 16) * m + (int32_t)low) >> (k - 17)) + 1) >> 1;
    }
    n = clipped(n, -0x4000, 0x4000); /* what is beyond is beyond every code */
    return ((n * m >> (k - 1)) + 1) >> 1;
}
@end
