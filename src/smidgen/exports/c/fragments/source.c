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

   Values share memory: a place is used again when nobody will read what was there, and an output may run into its
   own input from behind, which the layer has done with by the time it gets there. So the order of the calls, and
   the order in which each works through its image, must stay as they are. */

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
