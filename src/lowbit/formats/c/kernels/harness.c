/* Runs an exported network over samples: reads floats from inputs.bin, writes every layer's numbers, 16 bits each, and the outputs
   as floats to codes.bin. Compiled with the network's trace, for this machine or for a board in an emulator. */
#include <stdio.h>
#include "@header"

enum { HELD = 512 };

static FILE *codes;
static unsigned char held[HELD];
static size_t count;

@buffers

static void put(const void *data, size_t size)
{
    const unsigned char *byte = data;
    while (size--) {
        held[count++] = *byte++;
        if (count == HELD) {
            fwrite(held, 1, HELD, codes);
            count = 0;
        }
    }
}

void @name_trace(int number, int32_t code);

void @name_trace(int number, int32_t code)
{
    const unsigned char bytes[2] = {(unsigned char)(code & 0xff), (unsigned char)(code >> 8 & 0xff)};
    (void)number;
    put(bytes, sizeof bytes);
}

int main(void)
{
    FILE *const inputs = fopen("inputs.bin", "rb");
    codes = fopen("codes.bin", "wb");
    if (!inputs || !codes)
        return 2;
    while (1) {
@reads
        @name_run_float(@arguments);
@writes
    }
    fclose(inputs);
    fwrite(held, 1, count, codes);
    return fclose(codes) ? 3 : 0;
}
