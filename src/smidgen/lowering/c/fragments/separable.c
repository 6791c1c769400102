/* A row of a depthwise convolution with a kernel of {{height}} x {{width}} and then one of 1 x 1, four pixels at a time. */
struct ${{name}}_layer {
    const SMIDGEN_FLASH struct $outputs_layer *outputs;
    const SMIDGEN_FLASH {{weight}} *weights; /* [channels]{{shape}} */
@if bias
    const SMIDGEN_FLASH int16_t *bias; /* [channels], in units of 2^bias_shift; NULL: the offset instead */
@end
    const SMIDGEN_FLASH uint16_t *multipliers; /* [channels] */
    int32_t offset; /* of what is shifted */
    uint16_t ring, in_width, channels;
    uint16_t width; /* of the output */
@if padding
    uint16_t in_height;
    uint8_t padding_y, padding_x;
    uint8_t zero; /* the input that stands for 0 */
@end
    uint8_t shift;
@if bias
    uint8_t bias_shift;
@if before
    uint8_t before;
@end
@end
};

/* Four pixels of each channel. */
static SMIDGEN_INNER void ${{name}}_block(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const uint8_t *const *lines,
                                        int32_t left, uint16_t *to)
{
    const SMIDGEN_FLASH {{weight}} *w = layer->weights;
    const SMIDGEN_FLASH uint16_t *multipliers = layer->multipliers, *const end = multipliers + layer->channels;
    const int32_t in_width = layer->in_width, other = 4 * ((layer->channels + 1) / 2);
    int32_t next = 1, at = left;
@if bias
    const SMIDGEN_FLASH int16_t *bias = layer->bias;
@end
@if padding
    uint8_t window[{{height}}][{{columns}}];
    int32_t inside = left >= 0 && left + {{columns}} <= in_width, i, j;

    for (j = 0; j < {{height}}; j++)
        if (!lines[j]) inside = 0;
@end
    do {
        const uint8_t *from;
        int32_t s = 0, t = 0, u = 0, v = 0;
        int32_t multiplier = *multipliers++;
@if bias
        int32_t shift = layer->shift;
@end

@if padding
        for (j = 0; j < {{height}}; j++)
            for (i = 0; i < {{columns}} && !inside; i++) {
                const int32_t there = lines[j] && left + i >= 0 && left + i < in_width;
                window[j][i] = there ? lines[j][at + i] : layer->zero;
            }
@end
{{taps}}
        w += {{kernel_bytes}};
        at += in_width;
@if bias
        if (bias) {
            const int32_t start = (int32_t)*bias++ * ((int32_t)1 << layer->bias_shift);
            shift += multiplier >> 12;
            multiplier &= 4095;
{{with_bias}}
        } else {
{{with_offset}}
        }
@else
{{with_offset}}
@end
{{ends}}
        to += next;
        next ^= 2;
    } while (multipliers != end);
    if (layer->channels & 1) to[0] = to[2] = to[other] = to[other + 2] = 0;
}

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const uint8_t *in, int32_t row, uint16_t *patch,
                      void *out)
{
    const int32_t width = layer->width, row_bytes = layer->channels * layer->in_width;
    const uint8_t *lines[{{height}}];
    int32_t x, j;

    for (j = 0; j < {{height}}; j++) {
@if padding
        const int32_t y = row * {{stride_y}} - layer->padding_y + j * {{dilation_y}};
        lines[j] = y < 0 || y >= layer->in_height ? 0 : in + (y % layer->ring) * row_bytes;
@else
        lines[j] = in + ((row * {{stride_y}} + j * {{dilation_y}}) % layer->ring) * row_bytes;
@end
    }
    for (x = 0; x < width; x += 4) {
        /* The last pixels go with some before them. */
        const int32_t left = x + 4 > width && width > 4 ? width - 4 : x;
@if padding
        ${{name}}_block(layer, lines, left * {{stride_x}} - layer->padding_x, patch);
@else
        ${{name}}_block(layer, lines, left * {{stride_x}}, patch);
@end
        $outputs(layer->outputs, patch, 0, left, x - left, width < 4 ? width : 4, out);
    }
}
