/* Code number `at` of a tensor with `bits` (1, 2 or 4) a code, the first in the lowest bits; counted from 0. */
static int32_t unpack(const uint8_t *x, uint32_t bits, uint32_t at)
{
    at *= bits;
    return (int32_t)((uint32_t)(x[at >> 3] >> (at & 7u)) & ((1u << bits) - 1u));
}

static void pack(uint8_t *y, uint32_t bits, uint32_t at, int32_t code)
{
    const uint32_t shift = at * bits & 7u, mask = ((1u << bits) - 1u) << shift;
    uint8_t *const byte = y + (at * bits >> 3);
    *byte = (uint8_t)((*byte & ~mask) | ((uint32_t)code << shift));
}
