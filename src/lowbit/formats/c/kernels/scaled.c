/* t / 2^(more + 33), rounded half away from zero. |t| is below 2^62; what is beyond every code is only far away. */
INLINE int32_t rounded(int64_t t, int32_t more)
{
    t -= t < 0; /* then the half is added and the floor taken */
    if (more >= 0)
        return (((int32_t)(t >> 32) >> more) + 1) >> 1;
    t = (t + ((int64_t)1 << (more + 32))) >> (more + 33);
    return t > 0x3ffff ? 0x3ffff : t < -0x3ffff ? -0x3ffff : (int32_t)t;
}

/* The code of t / 2^shift. */
INLINE int32_t scaled(int64_t t, int32_t shift, int32_t zero, int32_t low, int32_t high)
{
    return clipped(rounded(t, shift - 33) + zero, low, high);
}
