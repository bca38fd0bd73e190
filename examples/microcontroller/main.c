/* Firmware: tests the network on this processor, and tells which digit the image shows. */
#include <stdio.h>

#include "digits.h"
#include "image.h"

int main(void)
{
    static digits_output_t output[DIGITS_OUTPUT_SIZE];
    float values[DIGITS_OUTPUT_SIZE];
    int best = 0, i;
    const int layer = digits_selftest();

    if (layer) {
        printf("self-test: layer %d differs\n", layer);
        return 1;
    }
    digits_run(image, output);
    digits_dequantize_output(output, values); /* each class has a scale of its own */
    for (i = 1; i < DIGITS_OUTPUT_SIZE; i++)
        if (values[i] > values[best])
            best = i;
    printf("self-test passed; this is a %d (labelled %d)\n", best, LABEL);
    return 0;
}
