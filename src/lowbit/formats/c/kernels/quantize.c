/* The code of a real number: value / scale, rounded half to even, moved by the zero point, clipped. NaN has the lowest code. */
static int32_t quantize(float value, float scale, int32_t zero, int32_t low, int32_t high)
{
    const float steps = value / scale;
    int32_t whole;
    float rest;
    if (!(steps > (float)(low - zero)))
        return low;
    if (steps >= (float)(high - zero))
        return high;
    whole = (int32_t)steps;
    rest = steps - (float)whole;
    if (rest > 0.5f || (rest == 0.5f && (whole & 1)))
        whole++;
    if (rest < -0.5f || (rest == -0.5f && (whole & 1)))
        whole--;
    return whole + zero;
}
