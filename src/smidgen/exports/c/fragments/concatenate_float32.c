/* The channels of one value among those of another that has more. */
static void $concatenate(const float *in, float *out, int32_t pixels, int32_t channels, int32_t out_channels)
{
    int32_t pixel, c;
    for (pixel = 0; pixel < pixels; pixel++, out += out_channels)
        for (c = 0; c < channels; c++) out[c] = *in++;
}
