/* Codes of t / 2^shift: rounded half away from zero, moved by the zero point, clipped. */
static int32_t scaled(int64_t t, uint32_t shift, int32_t zero, int32_t low, int32_t high)
{
    uint64_t magnitude = t < 0 ? 0u - (uint64_t)t : (uint64_t)t;
    int32_t code;
    magnitude = (magnitude + ((uint64_t)1 << (shift - 1))) >> shift;
    code = magnitude > 0x3ffff ? 0x3ffff : (int32_t)magnitude; /* beyond every code */
    code = (t < 0 ? -code : code) + zero;
    return code < low ? low : code > high ? high : code;
}
