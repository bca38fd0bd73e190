typedef char arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1]; /* the compiler shifts negative numbers as all that are known do */

INLINE int32_t clipped(int32_t code, int32_t low, int32_t high)
{
    return code < low ? low : code > high ? high : code;
}
