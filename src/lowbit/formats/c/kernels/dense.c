/* Windows of the input as x - zero point: pairs of the codes of two in turn. */
static union {
    int32_t aligned;
    int16_t codes[COLUMNS];
} columns;

/* Where in a column the code number k lies. */
INLINE int32_t slot(int32_t k)
{
    return (k >> 1) * 4 + (k & 1);
}

/* `count` codes of x from place `from` on, `step` apart, as a column's codes from number k on; returns their sum. */
INLINE int32_t load(const layer_t *t, int storage, const void *x, int32_t from, int32_t count, int16_t *column, int32_t k)
{
    const int32_t step = t->x_strides[0], more = t->x_more, end = k + count;
    int32_t sum = 0;
#if DSP
    if (step == 1 && !(k & 1)) {
        const int32_t mores = (int32_t)(((uint32_t)more & 0xffffu) * 0x10001u);
        word_t *to = (word_t *)(column + slot(k));
        for (; k + 4 <= end; k += 4, from += 4, to += 4) {
            int32_t even, odd;
            four_codes(storage, x, from, mores, &even, &odd);
            to[0] = (int32_t)(((uint32_t)even & 0xffffu) | (uint32_t)odd << 16);
            to[2] = (int32_t)((uint32_t)even >> 16 | ((uint32_t)odd & 0xffff0000u));
            sum = __smlad(even, 0x10001, __smlad(odd, 0x10001, sum));
        }
    }
#endif
    for (; k < end; k++, from += step) {
        const int32_t code = one_code(storage, x, from, more);
        column[slot(k)] = (int16_t)code;
        sum += code;
    }
    return sum;
}

/* The window at an output's place as a column; returns its sum. Outside of x is the zero point. */
static int32_t gather(const layer_t *t, const void *x, int32_t first, const extent_t *at, int16_t *column)
{
    enum { LAST = SPACE - 1 };
    const int32_t start = at[LAST] * t->stride[LAST] - t->pad[LAST];
    const int whole = t->joined && start >= 0 && start + t->kernel[LAST] <= t->in[LAST];
    const int32_t run = whole ? t->kernel[LAST] * t->channels : t->channels, runs = whole ? 1 : t->kernel[LAST];
    extent_t tap[SPACE] = {0};
    int32_t sum = 0, k = 0, i, d;
    do {
        int32_t from = first;
        int inside = 1;
        for (d = 0; d < LAST; d++) {
            i = at[d] * t->stride[d] + tap[d] * t->dilation[d] - t->pad[d];
            inside = inside && i >= 0 && i < t->in[d];
            from += i * t->x_strides[1 + d];
        }
        for (d = 0; d < runs; d++, k += run) {
            const int32_t place = start + d * t->dilation[LAST], there = from + place * t->x_strides[SPACE];
            if (inside && place >= 0 && place < t->in[LAST]) {
#define LOAD(storage) sum += load(t, storage, x, there, run, column, k)
                EVERY_STORAGE(LOAD)
            } else {
                for (i = k; i < k + run; i++)
                    column[slot(i)] = 0;
            }
        }
    } while (advance(tap, t->kernel, LAST));
    for (; k < t->padded; k++)
        column[slot(k)] = 0;
    return sum;
}

/* All outputs of one group at one or two places. Rows of weights lie in pairs, word by word in turn; an odd one at the end. */
static void multiply(const layer_t *t, void *y, int32_t group, int count, const int32_t *sums, const int32_t *places)
{
    const int32_t rows = t->groups * t->outputs, end = (group + 1) * t->outputs;
    int32_t first, row, i, p;
    for (first = group * t->outputs; first < end; first += ROWS) {
        const int32_t last = end - first < ROWS ? end : first + ROWS;
        const uint32_t *plane = t->weights;
        uint32_t totals[2 * ROWS];
        for (i = 0; i < ROWS; i++) {
            totals[i] = 0u - t->offset * (uint32_t)sums[0];
            totals[ROWS + i] = 0u - t->offset * (uint32_t)sums[1];
        }
        for (p = 0; p < t->plane_count; p++) {
            const plane_t *const at = t->planes + p;
            const uint32_t words = ((uint32_t)t->length * at->bits + 31u) >> 5, shift = at->shift;
            const uint32_t *word = plane + (uint32_t)first * words;
            uint32_t *total = totals;
            for (row = first; row + 1 < last; row += 2, word += 2 * words, total += 2) {
                if (count == 2)
                    at->dot(word, columns.codes, words, shift, total);
                else
                    at->single(word, 2, columns.codes, words, shift, total);
            }
            if (row < last)
                at->single(word, 1, columns.codes, words, shift, total);
            plane += (uint32_t)rows * words;
        }
        for (i = 0; i < count; i++)
            finish(t, y, places[i], first, last - first, totals + ROWS * i);
    }
}

static void dense(const layer_t *t, const void *x, void *y)
{
    int32_t group, d;
    for (group = 0; group < t->groups; group++) {
        extent_t at[SPACE] = {0};
        int32_t sums[2] = {0}, places[2] = {0};
        int count = 0;
        do {
            sums[count] = gather(t, x, group * t->channels * t->x_strides[0], at, columns.codes + 2 * count);
            places[count] = 0;
            for (d = 0; d < SPACE; d++)
                places[count] += at[d] * t->y_strides[1 + d];
            if (++count == 2) {
                multiply(t, y, group, count, sums, places);
                count = 0;
            }
        } while (advance(at, t->out, SPACE));
        if (count)
            multiply(t, y, group, count, sums, places);
    }
}
