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

   Values share memory: a place is reused when its value is no longer needed, and an output may overwrite the part of
   its own input that the layer has already read. So neither the order of the calls, nor the order in which a layer
   processes its image, may change. */

const {{score}} *{{prefix}}_scores(const uint8_t image[{{upper}}_PIXELS], {{prefix}}_scratch *scratch)
{
{{steps}}
}

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
