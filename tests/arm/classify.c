/* Classifies the images in images.h and writes, a line an image, in hexadecimal: class, scores, and how many ticks
   of the processor's timer went by, which an emulator that counts instructions makes a measure of them. */
#include <string.h>

#include "images.h"
#include "net.h"
#include "semihosting.h"

#define SYSTICK ((volatile uint32_t *)0xE000E010) /* control, reload, current: 24 bits, downwards */

static net_scratch scratch;

static void write_number(uint32_t value)
{
    char text[10];
    int i;
    for (i = 0; i < 8; i++) text[i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
    text[8] = ' ';
    text[9] = 0;
    write_text(text);
}

int main(void)
{
    int i, c;
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* on, at the processor's clock */
    for (i = 0; i < IMAGES; i++) {
        const uint32_t before = SYSTICK[2];
        const void *const scores = net_scores(images[i], &scratch);
        const uint32_t ticks = (before - SYSTICK[2]) & 0xffffff;
        write_number((uint32_t)net_best(scores));
        for (c = 0; c < NET_CLASSES; c++) {
            uint32_t bits;
            memcpy(&bits, (const char *)scores + 4 * c, 4);
            write_number(bits);
        }
        write_number(ticks);
        write_text("\n");
    }
    return 0;
}
