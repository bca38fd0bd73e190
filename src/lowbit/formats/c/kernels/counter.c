/* Counts, on a board in an emulator, the instructions and the bytes of stack that one inference takes, and runs the self-test. */
#include <stdio.h>
#include "@header"

enum { LOOPS = 1000000, PAINTED = 1024 };

@buffers

#ifdef __riscv
static uint32_t ticks(void)
{
    uint32_t count;
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrr %0, minstret\n.option pop" : "=r"(count));
    return count;
}

static void loop(uint32_t count)
{
    __asm__ volatile("1: addi %0, %0, -1\nbnez %0, 1b" : "+r"(count));
}
#else
/* The timer of Cortex-M counts down; under -icount its clock follows the instructions. */
static uint32_t ticks(void)
{
    return 0xffffffu - *(volatile uint32_t *)0xe000e018u;
}

static void loop(uint32_t count)
{
    __asm__ volatile(".syntax unified\n1: subs %0, %0, #1\nbne 1b" : "+l"(count) : : "cc");
}
#endif

/* Fills the stack below this function's own frame, or counts how much of that is not as it was filled. */
static uint32_t __attribute__((noinline)) stack(int fill)
{
    volatile uint32_t *const top = (volatile uint32_t *)__builtin_frame_address(0) - 8, *word = top - PAINTED;
    for (; word < top; word++) {
        if (fill)
            *word = 0xa5a5a5a5u;
        else if (*word != 0xa5a5a5a5u)
            break;
    }
    return (uint32_t)(top - word) * 4u;
}

int main(void)
{
    uint32_t a, b, c;
#ifndef __riscv
    *(volatile uint32_t *)0xe000e014u = 0xffffffu;
    *(volatile uint32_t *)0xe000e018u = 0;
    *(volatile uint32_t *)0xe000e010u = 5;
    loop(1000);
#endif
    a = ticks();
    loop(LOOPS);
    b = ticks();
    (void)stack(1);
    c = ticks();
    @name_run(@arguments);
    c = ticks() - c;
    printf("%lu %lu %lu %d\n", (unsigned long)(b - a), (unsigned long)c, (unsigned long)stack(0), @name_selftest());
    return 0;
}
