/* Classifies the images in images.h and writes class and scores of each, a line an image, in hexadecimal. */
#include <string.h>

#include "images.h"
#include "net.h"
#include "semihosting.h"

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
    for (i = 0; i < IMAGES; i++) {
        const void *const scores = net_scores(images[i], &scratch);
        write_number((uint32_t)net_best(scores));
        for (c = 0; c < NET_CLASSES; c++) {
            uint32_t bits;
            memcpy(&bits, (const char *)scores + 4 * c, 4);
            write_number(bits);
        }
        write_text("\n");
    }
    return 0;
}
