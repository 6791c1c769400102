/* Each channel times a scale plus a shift{{relu}}. */
struct $affine_layer {
    const SMIDGEN_FLASH float *scale, *shift; /* [channels] */
    int32_t pixels;
    uint16_t channels;
    uint8_t relu;
};

static void $affine(const SMIDGEN_FLASH struct $affine_layer *layer, const float *in, float *out)
{
    int32_t pixel, c;
    for (pixel = 0; pixel < layer->pixels; pixel++)
        for (c = 0; c < layer->channels; c++) {
            const float value = *in++ * layer->scale[c] + layer->shift[c];
            *out++ = layer->relu && value < 0.0f ? 0.0f : value;
        }
}
