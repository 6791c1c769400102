/* What comes before main on a Cortex-M without an operating system, and output by semihosting. */
#include <stdint.h>

#include "semihosting.h"

extern uint32_t data_from[], data_begin[], data_end[], bss_begin[], bss_end[], stack_top[];
extern int main(void);

static uint32_t call(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void write_text(const char *text) { call(0x04, text); }

static void stop(void)
{
    call(0x18, (const void *)0x20026); /* ADP_Stopped_ApplicationExit */
    for (;;) {
    }
}

static void fault(void)
{
    write_text("fault\n");
    stop();
}

static void reset(void)
{
    uint32_t *from = data_from, *to;
    for (to = data_begin; to < data_end; to++) *to = *from++;
    for (to = bss_begin; to < bss_end; to++) *to = 0;
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* the floating-point unit is off at first */
    __asm__ volatile("dsb\n\tisb");
#endif
    main();
    stop();
}

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))stack_top, reset, fault, fault,
};
