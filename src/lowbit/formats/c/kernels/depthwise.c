/* A convolution of every channel by itself. A row of weights holds one tap of all channels. */
static void depthwise(const layer_t *t, const void *x, void *y)
{
    const uint32_t channels = (uint32_t)t->channels;
    const uint32_t taps = t->length / channels;
    extent_t at[SPACE] = {0};
    do {
        int32_t place = 0, d;
        uint32_t c, k;
        int p;
        gather(t, x, 0, at, columns);
        for (d = 0; d < SPACE; d++)
            place += at[d] * t->y_strides[1 + d];
        for (c = 0; c < channels; c++) {
            const uint32_t *plane = t->weights;
            uint32_t total;
            int32_t sum = 0;
            for (k = 0; k < taps; k++)
                sum += columns[k * channels + c];
            total = 0u - (uint32_t)(t->offset * sum);
            for (p = 0; p < t->plane_count; p++) {
                const uint32_t bits = t->planes[p].bits, mask = (1u << bits) - 1u;
                const uint32_t words = (channels * bits + 31u) >> 5;
                const uint32_t *word = plane + (c * bits >> 5);
                const uint32_t shift = ((c * bits & 31u) >> 1) / bits * bits + (c & 1u) * 16u;
                uint32_t found = 0;
                for (k = 0; k < taps; k++, word += words)
                    found += (uint32_t)((int32_t)(*word >> shift & mask) * columns[k * channels + c]);
                total += found << t->planes[p].shift;
                plane += taps * words;
            }
            finish(t, y, place + (int32_t)c * t->y_strides[0], (int32_t)c, total);
        }
    } while (advance(at, t->out, SPACE));
}
