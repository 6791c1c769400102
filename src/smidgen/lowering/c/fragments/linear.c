/* Sums of all inputs. */
struct ${{name}}_layer {
    const SMIDGEN_FLASH {{weight}} *weights; /* [outputs][inputs] */
    const SMIDGEN_FLASH int16_t *bias;      /* [outputs], in units of 2^bias_shift */
@if rescaled
    const SMIDGEN_FLASH uint16_t *multipliers; /* [outputs]: 12 bits, and 4 that are added to the shift */
@if after
    const SMIDGEN_FLASH int32_t *factors; /* [outputs]: multiplier and offset instead, both with a sign; NULL: none */
@end
@end
    int32_t inputs;
    uint16_t outputs;
    uint8_t bias_shift;
@if rescaled
    uint16_t top; /* the largest output */
    uint8_t shift;
@if before
    uint8_t before;
@end
@if after
    uint8_t relu;
@end
@end
};

static void ${{name}}(const SMIDGEN_FLASH struct ${{name}}_layer *layer, const {{in}} *in, {{out}} *out)
{
    const SMIDGEN_FLASH {{weight}} *w = layer->weights;
    int32_t o, i;

    for (o = 0; o < layer->outputs; o++) {
        int32_t sum = (int32_t)layer->bias[o] * ((int32_t)1 << layer->bias_shift);

@if bits4
        for (i = 0; i < layer->inputs; i++) sum += (int32_t)in[i] * ((i & 1 ? w[i / 2] >> 4 : w[i / 2] & 15) - 8);
        w += (layer->inputs + 1) / 2;
@else
        for (i = 0; i < layer->inputs; i++) sum += (int32_t)in[i] * w[i];
        w += layer->inputs;
@end
@if rescaled
@if after
        if (layer->factors) {
            if (layer->relu && sum < 0) sum = 0;
            sum = sum * layer->factors[2 * o] + layer->factors[2 * o + 1];
            sum = sum < 0 ? 0 : sum >> layer->shift;
        } else
@end
        {
            const uint16_t packed = layer->multipliers[o];
            sum = sum < 0 ? 0 : sum;
@if before
            sum >>= layer->before;
@end
            sum = (sum * (packed & 4095)) >> (layer->shift + (packed >> 12));
        }
        out[o] = ({{out}})(sum > layer->top ? layer->top : sum);
@else
        out[o] = sum;
@end
    }
}
