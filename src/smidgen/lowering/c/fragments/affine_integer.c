/* Each channel of a row times a multiplier plus an offset, then to steps of the output. */
struct ${{name}}_layer {
    const SMIDGEN_FLASH int32_t *multipliers; /* [channels], in units of 2^-shift */
    const SMIDGEN_FLASH int32_t *offsets;     /* [channels] */
    uint16_t channels, width;
    uint16_t top; /* the largest output */
    uint8_t shift;
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    int32_t c, x;
    for (c = 0; c < layer->channels; c++)
        for (x = 0; x < layer->width; x++) {
            const int32_t value = (int32_t)*in++ * layer->multipliers[c] + layer->offsets[c];
            *out++ = ({{out}})$to_steps(value, layer->shift, layer->top);
        }
}
