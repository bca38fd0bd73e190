#if defined(NET_TRACE) || !defined(NET_NO_SELFTEST)
/* Every layer's tensor in the model's order of axes: sizes, strides, lowest code, bits where packed (else 0), kind of element, and
   the checksum of its codes in the self-test. */
typedef struct {
    int32_t shape[RANK], strides[RANK];
    int16_t low;
    uint8_t width, kind;
    uint32_t checksum;
} tensor_t;

static const tensor_t tensors[] = {
@tensors
};

#ifdef NET_TRACE
void net_trace(int number, int32_t code);
#endif

static int differs(int number, const void *x)
{
    const tensor_t *const t = tensors + number - 1;
    int32_t at[RANK] = {0}, code, place;
    uint32_t sum = 0;
    int axis;
    do {
        place = 0;
        for (axis = 0; axis < RANK; axis++)
            place += at[axis] * t->strides[axis];
@if check_packed
        if (t->width)
            code = unpack((const uint8_t *)x, t->width, (uint32_t)place) + t->low;
        else
@end
        code = t->kind == 32 ? ((const int32_t *)x)[place]
             : t->kind == 8 ? ((const int8_t *)x)[place] : ((const uint8_t *)x)[place];
        sum = sum * 31u + (uint32_t)code;
#ifdef NET_TRACE
        net_trace(number, code);
#endif
        for (axis = RANK - 1; axis >= 0; axis--) {
            if (++at[axis] < t->shape[axis])
                break;
            at[axis] = 0;
        }
    } while (axis >= 0);
    return sum != t->checksum;
}

#ifdef NET_TRACE
#define LAYER(number, x) if (differs(number, x) && checking) return number;
#else
#define LAYER(number, x) if (checking && differs(number, x)) return number;
#endif
#else
#define LAYER(number, x)
#endif
