/* How the codes of a tensor are stored. */
enum { INT8, UINT8, INT32, PACKED }; /* PACKED + bits */

/* Weights are stored as unsigned numbers, code + offset, cut into planes of 8, 4, 2 or 1 bits. A word of a plane holds the
   fields of a row: those of even places in its low half, those of odd places in its high half, lowest bits first. */
typedef struct {
    void (*dot)(const uint32_t *, const uint32_t *, const int16_t *, const int16_t *, uint32_t, int, uint32_t *);
    uint8_t bits, shift;
} plane_t;

/* A convolution, or a linear layer (a convolution of one tap). Channels and outputs are those of one group. */
typedef struct {
    const uint32_t *weights;
    const plane_t *planes;
    const int32_t *bias, *multipliers; /* NULL: none; the accumulators themselves are stored */
    const uint8_t *shifts;
    int32_t x_strides[SPACE + 1], y_strides[SPACE + 1]; /* of channels, then of positions, in elements */
    extent_t in[SPACE], out[SPACE], kernel[SPACE], stride[SPACE], dilation[SPACE], pad[SPACE];
    extent_t groups, channels, outputs;
    uint16_t length, padded; /* of a window: channels times taps, and rounded up to whole words */
    int16_t x_zero, y_zero, low, high, x_low, y_low;
    uint8_t x_storage, y_storage, plane_count, offset, joined;
} layer_t;

static int16_t columns[COLUMNS]; /* windows of the input as x - zero point */

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

/* `count` channels of x from place `from` on, minus the zero point; returns their sum. */
static int32_t load(const layer_t *t, const void *x, int32_t from, int32_t count, int16_t *to)
{
    const int32_t step = t->x_strides[0];
    int32_t sum = 0, i;
@if int8
    if (t->x_storage == INT8) {
        const int8_t *codes = (const int8_t *)x + from;
        for (i = 0; i < count; i++, codes += step) {
            const int32_t value = *codes - t->x_zero;
            *to++ = (int16_t)value;
            sum += value;
        }
    }
@end
@if uint8
    if (t->x_storage == UINT8) {
        const uint8_t *codes = (const uint8_t *)x + from;
        for (i = 0; i < count; i++, codes += step) {
            const int32_t value = *codes - t->x_zero;
            *to++ = (int16_t)value;
            sum += value;
        }
    }
@end
@if packed
    if (t->x_storage > PACKED) {
        for (i = 0; i < count; i++, from += step) {
            const int32_t code = unpack((const uint8_t *)x, t->x_storage - (uint32_t)PACKED, (uint32_t)from);
            const int32_t value = code + t->x_low - t->x_zero;
            *to++ = (int16_t)value;
            sum += value;
        }
    }
@end
    return sum;
}

/* The window at an output's place as a column; returns its sum. Outside of x is the zero point. */
static int32_t gather(const layer_t *t, const void *x, int32_t first, const extent_t *at, int16_t *column)
{
    enum { LAST = SPACE - 1 };
    const int32_t start = at[LAST] * t->stride[LAST] - t->pad[LAST];
    int16_t *to = column;
    extent_t tap[SPACE] = {0};
    int32_t sum = 0, k, d;
    do {
        int32_t from = first;
        int inside = 1;
        for (d = 0; d < LAST; d++) {
            const int32_t i = at[d] * t->stride[d] + tap[d] * t->dilation[d] - t->pad[d];
            inside = inside && i >= 0 && i < t->in[d];
            from += i * t->x_strides[1 + d];
        }
        if (inside && t->joined && start >= 0 && start + t->kernel[LAST] <= t->in[LAST]) {
            const int32_t count = t->kernel[LAST] * t->channels;
            sum += load(t, x, from + start * t->x_strides[SPACE], count, to);
            to += count;
            continue;
        }
        for (k = 0; k < t->kernel[LAST]; k++, to += t->channels) {
            const int32_t i = start + k * t->dilation[LAST];
            if (inside && i >= 0 && i < t->in[LAST])
                sum += load(t, x, from + i * t->x_strides[SPACE], t->channels, to);
            else
                memset(to, 0, (size_t)t->channels * sizeof *to);
        }
    } while (advance(tap, t->kernel, LAST));
    while (to < column + t->padded)
        *to++ = 0;
    return sum;
}

/* What becomes of a sum of products: bias, requantization, store. */
static void finish(const layer_t *t, void *y, int32_t place, int32_t channel, uint32_t sum)
{
    const int32_t n = (int32_t)(sum + (t->bias ? (uint32_t)t->bias[channel] : 0u));
    int32_t code;
@if int32
    if (!t->multipliers) {
        ((int32_t *)y)[place] = n;
        return;
    }
@end
@if codes
    code = scaled((int64_t)n * t->multipliers[channel], t->shifts[channel], t->y_zero, t->low, t->high);
@if y_packed
    if (t->y_storage > PACKED) {
        pack((uint8_t *)y, t->y_storage - (uint32_t)PACKED, (uint32_t)place, code - t->y_low);
        return;
    }
@end
    ((uint8_t *)y)[place] = (uint8_t)code; /* an int8_t is stored as the same byte */
@end
}
