/* Each channel times a multiplier plus an offset, then to steps of the output. */
struct ${{name}}_layer {
    const SMIDGEN_FLASH int32_t *multipliers; /* [channels], in units of 2^-shift */
    const SMIDGEN_FLASH int64_t *offsets;     /* [channels] */
    int32_t pixels;
    uint16_t channels;
    uint16_t top; /* the largest output */
    uint8_t shift;
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    int32_t pixel, c;
    for (pixel = 0; pixel < layer->pixels; pixel++)
        for (c = 0; c < layer->channels; c++) {
            const int64_t value = (int64_t)*in++ * layer->multipliers[c] + layer->offsets[c];
            *out++ = ({{out}})$to_steps(value, layer->shift, layer->top);
        }
}
