/* {{about}} */
static void ${{name}}(const float *in, float *out)
{
    int32_t y, x, c, j, i;

    for (y = 0; y < {{out_height}}; y++)
        for (x = 0; x < {{out_width}}; x++) {
            float *const to = out + y * {{out_row}} + x * {{out_column}};
            float found[{{channels}}];
@if padding
            const int32_t top = y * {{stride_y}} - {{padding_y}}, left = x * {{stride_x}} - {{padding_x}};
            const int32_t row_begin = top < 0 ? 0 : top, column_begin = left < 0 ? 0 : left;
            const int32_t row_end = top + {{kernel_height}} > {{height}} ? {{height}} : top + {{kernel_height}};
            const int32_t column_end = left + {{kernel_width}} > {{width}} ? {{width}} : left + {{kernel_width}};
@if average
            const float area = (float)({{area}});
@end
@else
            const int32_t row_begin = y * {{stride_y}}, column_begin = x * {{stride_x}};
            const int32_t row_end = row_begin + {{kernel_height}}, column_end = column_begin + {{kernel_width}};
@end

@if average
            for (c = 0; c < {{channels}}; c++) found[c] = 0.0f;
@else
            for (c = 0; c < {{channels}}; c++) found[c] = in[row_begin * {{row}} + column_begin * {{column}} + c];
@end
            for (j = row_begin; j < row_end; j++)
                for (i = column_begin; i < column_end; i++) {
                    const float *const from = in + j * {{row}} + i * {{column}};
@if average
                    for (c = 0; c < {{channels}}; c++) found[c] += from[c];
@else
                    for (c = 0; c < {{channels}}; c++) found[c] = from[c] > found[c] ? from[c] : found[c];
@end
                }
@if average
@if padding
            for (c = 0; c < {{channels}}; c++) to[c] = found[c] / area;
@else
            for (c = 0; c < {{channels}}; c++) to[c] = found[c] / {{area}};
@end
@else
            for (c = 0; c < {{channels}}; c++) to[c] = found[c];
@end
        }
}
