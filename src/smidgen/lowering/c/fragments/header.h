/* {{title}}
   {{origin}}

   {{arithmetic}}

   C99 without any library{{math}}, heap or recursion; nothing is written but the scratch memory, so calls with
   scratch memory of their own may run at the same time. Written by smidgen {{version}}. */
#ifndef {{guard}}
#define {{guard}}

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An image: rows from the top, each pixel's channels side by side, 0 to 255, as in the training data{{polarity}}. */
#define {{upper}}_HEIGHT {{height}}
#define {{upper}}_WIDTH {{width}}
#define {{upper}}_CHANNELS {{channels}}
#define {{upper}}_PIXELS {{pixels}}
#define {{upper}}_CLASSES {{classes}}

/* What it costs: bytes of constant tables, bytes of scratch memory, multiply-accumulates for one image. */
#define {{upper}}_WEIGHT_BYTES {{weight_bytes}}
#define {{upper}}_SCRATCH_BYTES {{scratch_bytes}}
#define {{upper}}_MACS {{macs}}

/* One step of a score as a real number, the network's own unit. */
#define {{upper}}_SCORE_UNIT {{score_unit}}

@if names
/* The names of the classes in the order of the scores, in UTF-8. Compiled with optimization, they take room only in
   files that use them. */
static const char *const {{prefix}}_names[{{upper}}_CLASSES] = {
{{names}}
};

@end
/* What a call works in: static, on the stack, or wherever there is room. It need not be cleared. */
typedef struct {
{{scratch}}
} {{prefix}}_scratch;

/* The scores of the classes; they stay in the scratch memory until it is used again. */
const {{score}} *{{prefix}}_scores(const uint8_t image[{{upper}}_PIXELS], {{prefix}}_scratch *scratch);

/* The class with the highest score, 0 to {{last}}; the first of equals. */
int {{prefix}}_best(const {{score}} scores[{{upper}}_CLASSES]);

/* Both at once: the class of an image. */
int {{prefix}}_classify(const uint8_t image[{{upper}}_PIXELS], {{prefix}}_scratch *scratch);

@if stream
/* The same for an image that comes row by row, as from a camera: only the rows that are still needed are kept. Begin,
   give all rows from the top, end. The scores are NULL if rows are missing; they stay until the next image begins. */
typedef struct {
    {{prefix}}_scratch scratch;
    int32_t seen, kept, top;
    uint8_t rows[{{stream_rows}} * {{upper}}_WIDTH * {{upper}}_CHANNELS];
} {{prefix}}_stream;

void {{prefix}}_begin({{prefix}}_stream *stream);
void {{prefix}}_row({{prefix}}_stream *stream, const uint8_t row[{{upper}}_WIDTH * {{upper}}_CHANNELS]);
const {{score}} *{{prefix}}_end({{prefix}}_stream *stream);

@end
#ifdef __cplusplus
}
#endif

#endif
