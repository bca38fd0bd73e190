/* All outputs of one group at one or two places. */
static void multiply(const layer_t *t, void *y, int32_t group, int count, const int32_t *sums, const int32_t *places)
{
    const int32_t rows = t->groups * t->outputs;
    int32_t row = group * t->outputs;
    const int32_t end = row + t->outputs;
    int i, p;
    for (; row < end; row += 2) {
        const int pair = row + 1 < end;
        const uint32_t *plane = t->weights;
        uint32_t totals[4] = {0}, found[4];
        for (p = 0; p < t->plane_count; p++) {
            const plane_t *const at = t->planes + p;
            const uint32_t words = ((uint32_t)t->length * at->bits + 31u) >> 5;
            const uint32_t *const one = plane + (uint32_t)row * words;
            at->dot(one, pair ? one + words : one, columns, columns + t->padded, words, count, found);
            for (i = 0; i < 4; i++)
                totals[i] += found[i] << at->shift;
            plane += (uint32_t)rows * words;
        }
        for (i = 0; i < count; i++) {
            const uint32_t less = (uint32_t)t->offset * (uint32_t)sums[i];
            finish(t, y, places[i] + row * t->y_strides[0], row, totals[2 * i] - less);
            if (pair)
                finish(t, y, places[i] + (row + 1) * t->y_strides[0], row + 1, totals[2 * i + 1] - less);
        }
    }
}

static void dense(const layer_t *t, const void *x, void *y)
{
    int32_t group, d;
    for (group = 0; group < t->groups; group++) {
        extent_t at[SPACE] = {0};
        int32_t sums[2], places[2];
        int count = 0;
        do {
            sums[count] = gather(t, x, group * t->channels * t->x_strides[0], at, columns + count * t->padded);
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
