/* The pair of fields at `shift` of a word of weights, and sums of such pairs times pairs of codes, modulo 2^32. */
#if DSP
#define PAIR(word, shift) ((word) >> (shift) & mask)

INLINE uint32_t both(uint32_t sum, uint32_t fields, uint32_t bits, const int16_t *x)
{
    (void)bits;
    return (uint32_t)__smlad((int32_t)fields, *(const word_t *)x, (int32_t)sum);
}
#else
#define PAIR(word, shift) ((word) >> (shift))

INLINE uint32_t both(uint32_t sum, uint32_t fields, uint32_t bits, const int16_t *x)
{
    const uint32_t mask = (1u << bits) - 1u;
    return sum + (uint32_t)((int32_t)(fields & mask) * x[0]) + (uint32_t)((int32_t)(fields >> 16 & mask) * x[1]);
}
#endif

