/* A row of the {{which}} of windows, channel by channel. */
struct ${{name}}_layer {
    uint16_t channels, in_height, in_width, width;
    uint16_t kernel_height, kernel_width;
    uint16_t stride_y, stride_x;
    uint16_t padding_y, padding_x;
@if average
    int32_t multiplier, offset; /* to steps of the output, in units of 2^-shift; of scores, the offset alone */
    uint16_t top; /* the largest output */
    uint8_t shift;
    uint8_t zero; /* the input that stands for 0 */
@end
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const uint8_t *in, int32_t ring, int32_t row,
                     {{out}} *out)
{
    const int32_t top = row * layer->stride_y - layer->padding_y, in_width = layer->in_width;
    int32_t c, x, j, i;

    for (c = 0; c < layer->channels; c++)
        for (x = 0; x < layer->width; x++) {
            const int32_t left = x * layer->stride_x - layer->padding_x;
            int32_t found = 0;

            for (j = top; j < top + layer->kernel_height; j++)
                for (i = left; i < left + layer->kernel_width; i++) {
                    const int32_t inside = j >= 0 && j < layer->in_height && i >= 0 && i < in_width;
@if average
                    found += inside ? in[((j % ring) * layer->channels + c) * in_width + i] : layer->zero;
@else
                    if (inside && in[((j % ring) * layer->channels + c) * in_width + i] > found)
                        found = in[((j % ring) * layer->channels + c) * in_width + i];
@end
                }
@if average
@if scores
            *out++ = found + layer->offset;
@else
            *out++ = ({{out}})$to_steps(found * layer->multiplier + layer->offset, layer->shift, layer->top);
@end
@else
            *out++ = ({{out}})found;
@end
        }
}
