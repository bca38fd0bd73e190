/* The whole part of a square root. */
static uint64_t square_root(uint64_t w)
{
    uint64_t root = 0, bit = (uint64_t)1 << 62;
    while (bit > w)
        bit >>= 2;
    for (; bit; bit >>= 2) {
        if (w >= root + bit) {
            w -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}
