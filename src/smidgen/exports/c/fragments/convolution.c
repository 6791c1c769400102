/* {{about}}
   Four outputs at a time, so that each input is loaded once for all four. */
struct ${{name}}_layer {
    const SMIDGEN_FLASH {{weight}} *weights; /* [out_channels][kernel_height][kernel_width][in_channels{{per_group}}] */
    const SMIDGEN_FLASH {{bias}} *bias;      /* [out_channels] */
@if integer
@if scores
    const SMIDGEN_FLASH int32_t *multipliers; /* [out_channels]: to the common unit of the scores, in units of 2^-30 */
@else
    const SMIDGEN_FLASH int32_t *multipliers; /* [out_channels]: to steps of the output, in units of 2^-shift */
@if offsets
    const SMIDGEN_FLASH int64_t *offsets;     /* [out_channels]: what is added before the shift */
@else
    int64_t offset;             /* the output's zero point and one half, in the same units */
@end
@end
@end
@if after
    const SMIDGEN_FLASH float *scale; /* [out_channels], after the ReLU; NULL: none */
    const SMIDGEN_FLASH float *shift;
@end
    uint16_t in_height, in_width, in_channels;
    uint16_t out_height, out_width, out_channels;
    uint16_t kernel_height, kernel_width;
    uint16_t stride_y, stride_x;
@if padding
    uint16_t padding_y, padding_x; /* zeros on each side */
@end
@if dilation
    uint16_t dilation_y, dilation_x;
@end
@if groups
    uint16_t groups;
@end
@if zero
    uint16_t zero; /* the input that stands for 0 */
@end
@if integer
@if not scores
    uint16_t top; /* the largest output */
    uint8_t shift;
@end
@end
@if relu
    uint8_t relu;
@end
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    const int32_t width = layer->in_width, channels = layer->in_channels;
@if groups
    const int32_t groups = layer->groups;
    const int32_t inputs = channels / groups, outputs = layer->out_channels / groups;
@else
    const int32_t inputs = channels, outputs = layer->out_channels;
@end
    const int32_t kernel_row = layer->kernel_width * inputs;
    const int32_t kernel = layer->kernel_height * kernel_row;
    int32_t x, y;

    for (y = 0; y < layer->out_height; y++) {
        for (x = 0; x < layer->out_width; x++) {
@if padding
            const int32_t top = y * layer->stride_y - layer->padding_y;
            const int32_t left = x * layer->stride_x - layer->padding_x;
            /* Rows and columns of the kernel that lie inside the image. */
            int32_t row_begin = 0, row_end = layer->kernel_height;
            int32_t column_begin = 0, column_end = layer->kernel_width;
@else
            const int32_t top = y * layer->stride_y, left = x * layer->stride_x;
            const int32_t row_end = layer->kernel_height;
@if spread
            const int32_t column_end = layer->kernel_width;
@end
@end
            int32_t o = 0;
@if groups
            int32_t g;
@end

@if padding
@if dilation
            while (top + row_begin * layer->dilation_y < 0) row_begin++;
            while (top + (row_end - 1) * layer->dilation_y >= layer->in_height) row_end--;
            while (left + column_begin * layer->dilation_x < 0) column_begin++;
            while (left + (column_end - 1) * layer->dilation_x >= width) column_end--;
@else
            if (top < 0) row_begin = -top;
            if (top + row_end > layer->in_height) row_end = layer->in_height - top;
            if (left < 0) column_begin = -left;
            if (left + column_end > width) column_end = width - left;
@end
@end
@if groups
            for (g = 0; g < groups; g++) {
                const int32_t last = (g + 1) * outputs;
                const int32_t offset = g * inputs;
@else
            {
                const int32_t last = outputs;
@end
                for (; o < last; o += 4) {
                    /* Beyond the last output, the last one is computed again and not stored. */
                    const int32_t count = last - o < 4 ? last - o : 4;
                    const SMIDGEN_FLASH {{weight}} *const w0 = layer->weights + o * kernel;
                    const SMIDGEN_FLASH {{weight}} *const w1 = count > 1 ? w0 + kernel : w0;
                    const SMIDGEN_FLASH {{weight}} *const w2 = count > 2 ? w1 + kernel : w1;
                    const SMIDGEN_FLASH {{weight}} *const w3 = count > 3 ? w2 + kernel : w2;
                    {{sum}} sums[4];
                    {{sum}} s0 = 0, s1 = 0, s2 = 0, s3 = 0;
                    int32_t row, i;

@if padding
                    for (row = row_begin; row < row_end; row++) {
@else
                    for (row = 0; row < row_end; row++) {
@end
@if dilation
                        const {{in}} *const line = in + (top + row * layer->dilation_y) * width * channels;
@else
                        const {{in}} *const line = in + (top + row) * width * channels;
@end
@if spread
                        int32_t column;
@if padding
                        for (column = column_begin; column < column_end; column++) {
@else
                        for (column = 0; column < column_end; column++) {
@end
@if dilation
                            const {{in}} *from = line + (left + column * layer->dilation_x) * channels;
@else
                            const {{in}} *from = line + (left + column) * channels;
@end
                            int32_t at = row * kernel_row + column * inputs;
                            const int32_t end = at + inputs;
@if groups
                            from += offset;
@end
                            for (i = at; i < end; i++) {
@else
                        {
                            /* Pixels side by side, with all their channels, are one run in memory. */
@if padding
                            const {{in}} *from = line + (left + column_begin) * channels;
                            const int32_t end = row * kernel_row + column_end * inputs;
                            for (i = row * kernel_row + column_begin * inputs; i < end; i++) {
@else
                            const {{in}} *from = line + left * channels;
                            const int32_t end = (row + 1) * kernel_row;
                            for (i = row * kernel_row; i < end; i++) {
@end
@end
@if zero
                                const {{sum}} value = ({{sum}})*from++ - layer->zero;
@else
                                const {{sum}} value = *from++;
@end
                                s0 += value * w0[i];
                                s1 += value * w1[i];
                                s2 += value * w2[i];
                                s3 += value * w3[i];
                            }
                        }
                    }
                    sums[0] = s0;
                    sums[1] = s1;
                    sums[2] = s2;
                    sums[3] = s3;
                    for (i = 0; i < count; i++) {
                        {{sum}} sum = sums[i] + layer->bias[o + i];
@if relu
                        if (layer->relu && sum < 0) sum = 0;
@end
@if after
                        if (layer->scale) sum = sum * layer->scale[o + i] + layer->shift[o + i];
@end
@if integer
@if scores
                        out[o + i] = $to_score((int64_t)sum * layer->multipliers[o + i]);
@else
@if offsets
                        out[o + i] = ({{out}})$to_steps((int64_t)sum * layer->multipliers[o + i] + layer->offsets[o + i],
                                                       layer->shift, layer->top);
@else
                        out[o + i] = ({{out}})$to_steps((int64_t)sum * layer->multipliers[o + i] + layer->offset,
                                                       layer->shift, layer->top);
@end
@end
@else
                        out[o + i] = sum;
@end
                    }
                }
@if groups
                o = last;
@end
            }
            out += layer->out_channels;
        }
    }
}
