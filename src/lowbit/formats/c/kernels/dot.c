/* Two rows of weights of @bits bits times two columns. */
static void dot@bits(const uint32_t *weights, const int16_t *x, uint32_t words, uint32_t shift, uint32_t *totals)
{
    const uint32_t *const end = weights + 2 * words;
    uint32_t a = 0, b = 0, c = 0, d = 0, p, q;
#if DSP
    uint32_t mask = @mask * 0x10001u;
    __asm__("" : "+r"(mask)); /* in a register, one instruction shifts and masks */
#endif
    do {
        const uint32_t u = weights[0], v = weights[1];
@double
        x += @step;
        weights += 2;
    } while (weights != end);
    totals[0] += a << shift;
    totals[1] += b << shift;
    totals[ROWS] += c << shift;
    totals[ROWS + 1] += d << shift;
}

/* With step 2 two rows times one column, with step 1 one row times two columns. */
static void single@bits(const uint32_t *weights, uint32_t step, const int16_t *x, uint32_t words, uint32_t shift, uint32_t *totals)
{
    const uint32_t *const end = weights + step * words;
    const int32_t other = step == 1 ? 2 : 0;
    uint32_t a = 0, b = 0;
#if DSP
    uint32_t mask = @mask * 0x10001u;
    __asm__("" : "+r"(mask));
#endif
    do {
        const uint32_t u = weights[0], v = weights[step - 1];
@single
        x += @step;
        weights += step;
    } while (weights != end);
    totals[0] += a << shift;
    totals[step == 1 ? ROWS : 1] += b << shift;
}
