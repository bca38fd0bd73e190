/* n / 2^shift, rounded half to even; what is beyond every code is only far away. */
INLINE int32_t shifted(int32_t n, int32_t shift)
{
    if (shift <= 0) {
        const int64_t t = (int64_t)((uint64_t)(int64_t)n << -shift);
        return t > 0x3ffff ? 0x3ffff : t < -0x3ffff ? -0x3ffff : (int32_t)t;
    }
    if (shift > 31)
        return 0;
    {
        const int32_t floor = n >> shift;
        const uint32_t half = 1u << (shift - 1), rest = (uint32_t)n & (2u * half - 1u);
        return floor + (rest > half || (rest == half && (floor & 1)));
    }
}
