/* How the codes of a tensor are stored. */
enum { INT8, UINT8, INT32, PACKED }; /* PACKED + bits */

/* Weights are stored as unsigned numbers, code + offset, cut into planes of 8, 4, 2 or 1 bits. A word of a plane holds the
   fields of a row: those of even places in its low half, those of odd places in its high half, lowest bits first. */
typedef struct {
@if dense
    void (*dot)(const uint32_t *, const int16_t *, uint32_t, uint32_t, uint32_t *);
    void (*single)(const uint32_t *, uint32_t, const int16_t *, uint32_t, uint32_t, uint32_t *);
@end
    uint8_t bits, shift;
} plane_t;

/* A convolution, or a linear layer (a convolution of one tap). Channels and outputs are those of one group. */
typedef struct {
    const uint32_t *weights;
    const plane_t *planes;
    const int32_t *bias, *multipliers; /* NULL: none; all are powers of two */
    const int8_t *shifts; /* less 33, or without multipliers 32 more, and negative if the sum is to be; NULL: the sums are stored */
    int32_t x_strides[SPACE + 1], y_strides[SPACE + 1]; /* of channels, then of positions, in elements */
    extent_t in[SPACE], out[SPACE], kernel[SPACE], stride[SPACE], dilation[SPACE], pad[SPACE];
    extent_t groups, channels, outputs;
    uint16_t length, padded; /* of a window: channels times taps, and rounded up to whole words */
    int16_t x_more, y_zero, low, high, y_low; /* x_more: what is added to a code as it is stored to make it a step */
    uint8_t x_storage, y_storage, plane_count, offset, joined, wide;
} layer_t;

/* The next place of a tensor with these limits, row-major; 0 after the last. */
static int advance(extent_t *at, const extent_t *limits, int dimensions)
{
    while (dimensions-- > 0) {
        at[dimensions] = (extent_t)(at[dimensions] + 1);
        if (at[dimensions] < limits[dimensions])
            return 1;
        at[dimensions] = 0;
    }
    return 0;
}

#if DSP
/* Four codes beside each other from place `from` on, plus both halves of `more`: the first and third, and the others. */
INLINE void four_codes(int storage, const void *x, int32_t from, int32_t more, int32_t *even, int32_t *odd)
{
    if (storage == INT8) {
        const uint32_t word = word_at((const int8_t *)x + from);
        *even = __sxtab16(more, (int32_t)word);
        *odd = __sxtab16(more, (int32_t)(word >> 8));
    } else if (storage == UINT8) {
        const uint32_t word = word_at((const uint8_t *)x + from);
        *even = (int32_t)__uxtab16((uint32_t)more, word);
        *odd = (int32_t)__uxtab16((uint32_t)more, word >> 8);
@if packed
    } else {
        const uint32_t bits = (uint32_t)(storage - PACKED), place = (uint32_t)from * bits, mask = ((1u << bits) - 1u) * 0x10001u;
        const uint8_t *const byte = (const uint8_t *)x + (place >> 3);
        uint32_t word = bits == 4 ? byte[0] | (uint32_t)byte[1] << 8 : (uint32_t)*byte >> (place & 7u);
        word |= word << (16 - 2 * bits);
        *even = __sadd16((int32_t)(word & mask), more);
        *odd = __sadd16((int32_t)(word >> bits & mask), more);
@end
    }
}
#endif

/* A code plus `more`. */
INLINE int32_t one_code(int storage, const void *x, int32_t from, int32_t more)
{
    if (storage == INT8)
        return ((const int8_t *)x)[from] + more;
@if packed
    if (storage > PACKED)
        return unpack((const uint8_t *)x, (uint32_t)(storage - PACKED), (uint32_t)from) + more;
@end
    return ((const uint8_t *)x)[from] + more;
}

/* One call for every way in which codes are stored, each with a constant in place of the way. */
#define EVERY_STORAGE(call) \
    switch (t->x_storage) { \
@if int8
    case INT8: call(INT8); break; \
@end
@if uint8
    case UINT8: call(UINT8); break; \
@end
@if packed1
    case PACKED + 1: call(PACKED + 1); break; \
@end
@if packed2
    case PACKED + 2: call(PACKED + 2); break; \
@end
@if packed4
    case PACKED + 4: call(PACKED + 4); break; \
@end
    }

/* What becomes of sums of products: bias, requantization, store, of neighbouring channels at one place. */
static void finish(const layer_t *t, void *y, int32_t place, int32_t channel, int32_t count, const uint32_t *sums)
{
    const int32_t apart = t->y_strides[0];
    const int32_t *const bias = t->bias ? t->bias + channel : NULL;
    int32_t i;
@if int32
    if (!t->shifts) {
        for (i = 0; i < count; i++)
            ((int32_t *)y)[place + (channel + i) * apart] = (int32_t)(sums[i] + (bias ? (uint32_t)bias[i] : 0u));
        return;
    }
@end
@if codes
    {
@if multiplied
        const int32_t *const multipliers = t->multipliers ? t->multipliers + channel : NULL;
@end
@if requantized_layer
        const int32_t *const multipliers = t->multipliers + channel;
@end
        const int8_t *const shifts = t->shifts + channel;
        const int32_t zero = t->y_zero, low = t->low, high = t->high;
        place += channel * apart;
        for (i = 0; i < count; i++, place += apart) {
            uint32_t n = sums[i] + (bias ? (uint32_t)bias[i] : 0u);
            int32_t more = shifts[i], code = 0;
@if shifted
            if (!t->multipliers) {
                if (more < 0) {
                    n = 0u - n;
                    more = -more;
                }
                code = shifted((int32_t)n, more - 32);
            } else
@end
            {
@if multiplied
@if wide
                if (t->wide) {
                    code = rounded((int64_t)(int32_t)n * multipliers[i], more);
                } else
@end
                {
                    if (more < 0) { /* n has room for it */
                        n <<= -more;
                        more = 0;
                    }
                    code = rounded((int64_t)(int32_t)n * multipliers[i], more);
                }
@end
            }
@if requantized_layer
            code = requantized((int32_t)n, multipliers[i], more);
@end
            code = clipped(code + zero, low, high);
@if y_packed
            if (t->y_storage > PACKED) {
                pack((uint8_t *)y, t->y_storage - (uint32_t)PACKED, (uint32_t)place, code - t->y_low);
                continue;
            }
@end
            ((uint8_t *)y)[place] = (uint8_t)code; /* an int8_t is stored as the same byte */
        }
    }
@end
}
