/* A row of a convolution, four pixels at a time: what they depend on is gathered, then multiplied. */
struct $convolution_layer {
    const SMIDGEN_FLASH struct $outputs_layer *outputs;
    int32_t row_step, channel_step, column_step;
    uint16_t inputs, groups; /* inputs of a group */
    uint16_t kernel_height, kernel_width;
    uint16_t stride_y, stride_x;
    uint16_t dilation_y, dilation_x;
    uint16_t width; /* of the output */
@if padding
    uint16_t in_height, in_width;
    uint16_t padding_y, padding_x;
    uint8_t zero; /* the input that stands for 0 */
@end
};

static void $convolution(const SMIDGEN_FLASH struct $convolution_layer *layer, const uint8_t *in, int32_t ring,
                         int32_t row, uint16_t *patch, void *out)
{
    const int32_t width = layer->width, stride = layer->stride_x;
@if padding
    const int32_t top = row * layer->stride_y - layer->padding_y;
@else
    const int32_t top = row * layer->stride_y, gap = stride * layer->column_step;
    const int32_t second = width > 1 ? gap : 0, third = width > 2 ? 2 * gap : 0, fourth = width > 3 ? 3 * gap : 0;
@end
    const int32_t inputs = layer->inputs * layer->kernel_height * layer->kernel_width;
    uint16_t *const other = patch + 4 * ((inputs + 1) / 2);
    int32_t x, g, c, j, i;

    for (x = 0; x < width; x += 4) {
        /* The last pixels go with some before them. */
        const int32_t left = x + 4 > width && width > 4 ? width - 4 : x;

        for (g = 0; g < layer->groups; g++) {
            uint16_t *to = patch, *too = other;
            int32_t next = 1;

            for (j = 0; j < layer->kernel_height; j++) {
                const int32_t y = top + j * layer->dilation_y;
@if padding
                const int32_t inside = y >= 0 && y < layer->in_height;
                const uint8_t *from = in + (inside ? y % ring : 0) * layer->row_step;
@else
                const uint8_t *from = in + (y % ring) * layer->row_step + left * gap;
@end

                from += g * layer->inputs * layer->channel_step;
                for (c = 0; c < layer->inputs; c++, from += layer->channel_step)
                    for (i = 0; i < layer->kernel_width; i++, to += next, too += next, next ^= 2) {
@if padding
                        int32_t u = left * stride - layer->padding_x + i * layer->dilation_x, p;
                        for (p = 0; p < 4; p++, u += p < width ? stride : 0) {
                            const int32_t there = inside && u >= 0 && u < layer->in_width;
                            (p < 2 ? to : too)[2 * (p & 1)] = there ? from[u * layer->column_step] : layer->zero;
                        }
@else
                        const uint8_t *const at = from + i * layer->dilation_x * layer->column_step;
                        to[0] = at[0];
                        to[2] = at[second];
                        too[0] = at[third];
                        too[2] = at[fourth];
@end
                    }
            }
            if (inputs & 1) to[0] = to[2] = too[0] = too[2] = 0;
            $outputs(layer->outputs, patch, g, left, x - left, width < 4 ? width : 4, out);
        }
    }
}
