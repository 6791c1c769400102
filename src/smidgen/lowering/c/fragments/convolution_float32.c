/* {{about}} */
static void ${{name}}(const float *in, float *out)
{
    int32_t y, x, b, o{{indices}};

    for (y = 0; y < {{out_height}}; y++)
        for (x = 0; x < {{out_width}}; x += {{pixels}}) {
@if back
            /* The last pixels go with some before them. */
            const int32_t left = x + {{pixels}} > {{out_width}} ? {{out_width}} - {{pixels}} : x;
@else
            const int32_t left = x;
@end
            const float *const from = in + y * {{row}} + left * {{column}};
            float *const to = out + y * {{out_row}} + left * {{out_column}};

            for (b = 0; b < {{outputs}}; b += {{block}}) {
                float {{sums}};

                SMIDGEN_KEEP_LOOP
                for (o = 0; o < {{block}}; o++) {{start}};
{{products}}
                SMIDGEN_KEEP_LOOP
                for (o = 0; o < {{block}}; o++) {
{{ends}}
                }
            }
        }
}
