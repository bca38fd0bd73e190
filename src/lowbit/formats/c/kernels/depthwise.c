/* The weights of all channels as bytes, a row per tap, unpacked when a layer begins. */
static union {
    int32_t aligned;
    int8_t codes[TAP_ROWS];
} taps;

/* Of taps: how far from a window's first code theirs are, and where their weights are. All taps, and those that lie in x. */
static int32_t all[2 * TAPS], inner[2 * TAPS];

static void unpack_taps(const layer_t *t, int32_t count)
{
    const int32_t channels = t->channels;
    const uint32_t *plane = t->weights;
    int32_t k, c, p;
    for (k = 0; k < count; k++)
        memset(taps.codes + k * t->padded, -t->offset, (size_t)t->padded);
    for (p = 0; p < t->plane_count; p++) {
        const uint32_t bits = t->planes[p].bits, mask = (1u << bits) - 1u;
        const uint32_t words = ((uint32_t)channels * bits + 31u) >> 5;
        for (k = 0; k < count; k++, plane += words) {
            int8_t *const row = taps.codes + k * t->padded;
            uint32_t place = 0; /* of a pair of fields, in bits of half words */
            for (c = 0; c < channels; c += 2, place += bits) {
                const uint32_t fields = plane[place >> 4] >> (place & 15u);
                row[c] = (int8_t)(row[c] + (int32_t)((fields & mask) << t->planes[p].shift));
                row[c + 1] = (int8_t)(row[c + 1] + (int32_t)((fields >> 16 & mask) << t->planes[p].shift));
            }
        }
    }
}

/* Four channels of a window or fewer, from channel c on. */
INLINE void four_sums(const layer_t *t, int storage, const void *x, int32_t base, const int32_t *tap, int32_t count, int32_t c,
                      int32_t width, uint32_t *totals)
{
    const int32_t *const end = tap + 2 * count;
    const int32_t more = t->x_more, step = t->x_strides[0];
    int32_t a = 0, b = 0, e = 0, f = 0;
#if DSP
    const int32_t mores = (int32_t)(((uint32_t)more & 0xffffu) * 0x10001u);
    if (step == 1 && width == 4) {
        const int8_t *const rows = taps.codes + c;
        base += c;
        for (; tap != end; tap += 2) {
            const uint32_t weights = word_at(rows + tap[1]);
            const int32_t v = __sxtb16((int32_t)weights), w = __sxtb16((int32_t)(weights >> 8));
            int32_t even, odd;
            four_codes(storage, x, base + tap[0], mores, &even, &odd);
            a = __smlabb(even, v, a);
            b = __smlabb(odd, w, b);
            e = __smlatt(even, v, e);
            f = __smlatt(odd, w, f);
        }
    }
#endif
    for (; tap != end; tap += 2) {
        const int8_t *const row = taps.codes + tap[1] + c;
        const int32_t from = base + tap[0] + c * step;
        a += row[0] * one_code(storage, x, from, more);
        if (width > 1)
            b += row[1] * one_code(storage, x, from + step, more);
        if (width > 2)
            e += row[2] * one_code(storage, x, from + 2 * step, more);
        if (width > 3)
            f += row[3] * one_code(storage, x, from + 3 * step, more);
    }
    totals[0] = (uint32_t)a;
    totals[1] = (uint32_t)b;
    totals[2] = (uint32_t)e;
    totals[3] = (uint32_t)f;
}

/* A convolution of every channel by itself, four channels at a time. */
static void depthwise(const layer_t *t, const void *x, void *y)
{
    const int32_t channels = t->channels, count = t->length / channels;
    extent_t at[SPACE] = {0}, tap[SPACE] = {0};
    int32_t c, d, k = 0;
    unpack_taps(t, count);
    do {
        all[2 * k] = 0;
        for (d = 0; d < SPACE; d++)
            all[2 * k] += tap[d] * t->dilation[d] * t->x_strides[1 + d];
        all[2 * k + 1] = k * t->padded;
        k++;
    } while (advance(tap, t->kernel, SPACE));
    do {
        int32_t base = 0, place = 0, some = count;
        const int32_t *list = all;
        for (d = 0; d < SPACE; d++) {
            const int32_t start = at[d] * t->stride[d] - t->pad[d];
            base += start * t->x_strides[1 + d];
            place += at[d] * t->y_strides[1 + d];
            if (start < 0 || start + (t->kernel[d] - 1) * t->dilation[d] >= t->in[d])
                list = inner;
        }
        if (list == inner) {
            some = k = 0;
            do {
                int inside = 1;
                for (d = 0; d < SPACE; d++) {
                    const int32_t i = at[d] * t->stride[d] + tap[d] * t->dilation[d] - t->pad[d];
                    inside = inside && i >= 0 && i < t->in[d];
                }
                inner[2 * some] = all[2 * k];
                inner[2 * some + 1] = all[2 * k + 1];
                some += inside;
                k++;
            } while (advance(tap, t->kernel, SPACE));
        }
        for (c = 0; c < channels; c += ROWS) {
            const int32_t end = channels - c < ROWS ? channels : c + ROWS;
            uint32_t totals[ROWS];
#define FOUR_SUMS(storage) \
    for (d = c; d < end; d += 4) \
        four_sums(t, storage, x, base, list, some, d, end - d < 4 ? end - d : 4, totals + d - c)
            EVERY_STORAGE(FOUR_SUMS)
            finish(t, y, place, c, end - c, totals);
        }
    } while (advance(at, t->out, SPACE));
}
