/* The channels of one value among those of another that has more, to steps of that one. */
struct ${{name}}_layer {
    int32_t multiplier; /* in units of 2^-shift */
    int64_t offset;
    int32_t pixels;
    uint16_t channels, out_channels;
    uint16_t top;
    uint8_t shift;
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    int32_t pixel, c;
    for (pixel = 0; pixel < layer->pixels; pixel++, out += layer->out_channels)
        for (c = 0; c < layer->channels; c++)
            out[c] = ({{out}})$to_steps((int64_t)*in++ * layer->multiplier + layer->offset, layer->shift, layer->top);
}
