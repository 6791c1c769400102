/* A row of a pooling whose windows do not overlap{{what}}. */
static void ${{name}}(const uint8_t *in, {{out}} *out, int32_t channels, int32_t width, int32_t outputs, int32_t kernel)
{
    int32_t c, x, i;

    for (c = 0; c < channels; c++, in += width, out += outputs)
        for (x = 0; x < outputs; x++)
            for (i = x * kernel; i < (x + 1) * kernel; i++)
@if max
                if (in[i] > out[x]) out[x] = in[i];
@else
                out[x] = ({{out}})(out[x] + in[i]);
@end
}
