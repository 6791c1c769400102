/* A row of the image, its channels apart. */
static void ${{name}}(const uint8_t *in, uint8_t *out, int32_t channels, int32_t width)
{
    int32_t c, x;
    for (c = 0; c < channels; c++)
        for (x = 0; x < width; x++) *out++ = in[x * channels + c];
}
