/* {{title}}: see {{prefix}}.h. Written by smidgen {{version}}. */
#include "{{prefix}}.h"

{{includes}}
/* Where the tables are. GCC for AVR, in GNU C, reads them from flash; there, and in C++ or ISO C, they would take
   RAM otherwise. Elsewhere constants stay in flash by themselves. */
#ifndef SMIDGEN_FLASH
#ifdef __FLASH
#define SMIDGEN_FLASH __flash
#else
#define SMIDGEN_FLASH
#endif
#endif

{{kernels}}

/* ---- Weights and shapes ---- */

{{tables}}

/* ---- The network ----

   {{order}} */

{{functions}}

const {{score}} *{{prefix}}_scores(const uint8_t image[{{upper}}_PIXELS], {{prefix}}_scratch *scratch)
{
{{steps}}
}

@if stream
void {{prefix}}_begin({{prefix}}_stream *stream)
{
    stream->seen = stream->kept = stream->top = 0;
    $start(&stream->scratch);
}

void {{prefix}}_row({{prefix}}_stream *stream, const uint8_t row[{{upper}}_WIDTH * {{upper}}_CHANNELS])
{
{{push}}
}

const {{score}} *{{prefix}}_end({{prefix}}_stream *stream)
{
    return stream->seen == {{upper}}_HEIGHT ? $finish(&stream->scratch) : 0;
}

@end
int {{prefix}}_best(const {{score}} scores[{{upper}}_CLASSES])
{
    int best = 0, i;

    for (i = 1; i < {{upper}}_CLASSES; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

int {{prefix}}_classify(const uint8_t image[{{upper}}_PIXELS], {{prefix}}_scratch *scratch)
{
    return {{prefix}}_best({{prefix}}_scores(image, scratch));
}
