/* {{about}} */
static void ${{name}}({{inputs}}, float *out)
{
    int32_t j, i, c;

    for (j = 0; j < {{height}}; j++)
        for (i = 0; i < {{width}}; i++) {
            float *const to = out + j * {{out_row}} + i * {{out_column}};
{{body}}
        }
}
