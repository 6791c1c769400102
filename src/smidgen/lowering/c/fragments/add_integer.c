/* The sum of rows of two values, each times a multiplier, to steps of the output. */
struct ${{name}}_layer {
    int32_t first, second, offset; /* in units of 2^-shift */
    int32_t count;
    uint16_t top;
    uint8_t shift;
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *a, const {{in2}} *b, {{out}} *out)
{
    int32_t i;
    for (i = 0; i < layer->count; i++) {
        const int32_t value = (int32_t)a[i] * layer->first + (int32_t)b[i] * layer->second + layer->offset;
        out[i] = ({{out}})$to_steps(value, layer->shift, layer->top);
    }
}
