@if average
/* {{about}} */
@else
/* {{about}} */
@end
struct ${{name}}_layer {
@if padding
    uint16_t in_height;
@end
    uint16_t in_width, channels;
    uint16_t out_height, out_width;
    uint16_t kernel_height, kernel_width;
    uint16_t stride_y, stride_x;
@if padding
    uint16_t padding_y, padding_x;
@end
@if average
@if integer
    int32_t multiplier; /* from a sum to steps of the output, in units of 2^-shift */
    int64_t offset;     /* zero points and one half, in the same units */
@if padding
    uint16_t zero; /* the input that stands for 0 */
@end
@if not scores
    uint16_t top; /* the largest output */
    uint8_t shift;
@end
@else
@if padding
    uint8_t count_padding; /* whether zeros outside the image count in the mean */
@end
@end
@end
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    const int32_t width = layer->in_width, channels = layer->channels;
    int32_t x, y, c;

    for (y = 0; y < layer->out_height; y++) {
        for (x = 0; x < layer->out_width; x++) {
@if padding
            const int32_t top = y * layer->stride_y - layer->padding_y;
            const int32_t left = x * layer->stride_x - layer->padding_x;
            /* The part of the window that lies inside the image. */
            const int32_t row_begin = top < 0 ? 0 : top, column_begin = left < 0 ? 0 : left;
            const int32_t bottom = top + layer->kernel_height, right = left + layer->kernel_width;
            const int32_t row_end = bottom > layer->in_height ? layer->in_height : bottom;
            const int32_t column_end = right > width ? width : right;
@else
            const int32_t row_begin = y * layer->stride_y, column_begin = x * layer->stride_x;
            const int32_t row_end = row_begin + layer->kernel_height;
            const int32_t column_end = column_begin + layer->kernel_width;
@end
@if average
@if padding
            const int32_t inside = (row_end - row_begin) * (column_end - column_begin);
@end
@end

            for (c = 0; c < channels; c++) {
                int32_t row, column;
@if average
                {{sum}} sum = 0;

                for (row = row_begin; row < row_end; row++)
                    for (column = column_begin; column < column_end; column++)
                        sum += in[(row * width + column) * channels + c];
@if integer
@if padding
                sum += layer->zero * (layer->kernel_height * layer->kernel_width - inside);
@end
@if scores
                *out++ = $to_score((int64_t)sum * layer->multiplier + layer->offset);
@else
                *out++ = ({{out}})$to_steps((int64_t)sum * layer->multiplier + layer->offset, layer->shift, layer->top);
@end
@else
@if padding
                *out++ = sum / (float)(layer->count_padding ? layer->kernel_height * layer->kernel_width : inside);
@else
                *out++ = sum / (float)(layer->kernel_height * layer->kernel_width);
@end
@end
@else
                {{in}} most = in[(row_begin * width + column_begin) * channels + c];

                for (row = row_begin; row < row_end; row++)
                    for (column = column_begin; column < column_end; column++) {
                        const {{in}} value = in[(row * width + column) * channels + c];
                        if (value > most) most = value;
                    }
                *out++ = most;
@end
            }
        }
    }
}
