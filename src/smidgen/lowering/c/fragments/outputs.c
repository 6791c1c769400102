/* What is done with a convolution's sums: a bias, nothing below 0, a multiplication and a shift to the output's
   steps; then the result is stored{{sinks}}. */
struct $outputs_layer {
    const SMIDGEN_FLASH {{weight}} *weights;    /* by four outputs and two inputs, see the dot products */
    const SMIDGEN_FLASH int16_t *bias;         /* [groups][outputs], in units of 2^bias_shift */
    const SMIDGEN_FLASH uint16_t *multipliers; /* likewise: 12 bits, and 4 that are added to the shift */
@if after
    const SMIDGEN_FLASH int32_t *factors; /* likewise: multiplier and offset instead, both with a sign; NULL: none */
@end
    int32_t step; /* from an output to the next */
    int32_t group_weights;
    uint16_t pairs, outputs; /* of a group */
@if pooled
    uint16_t pool_width;
@end
    uint8_t bias_shift, shift;
@if before
    uint8_t before;
@end
@if after
    uint8_t relu;
@end
@if many
    uint8_t sink; /* {{sink_names}} */
@end
};

{{finishes}}

/* Of four pixels from column x on, those from `from` to `to`. */
static void $outputs(const SMIDGEN_FLASH struct $outputs_layer *layer, const uint16_t *patch, int32_t group, int32_t x,
                     int32_t from, int32_t to, void *out)
{
    const int32_t pairs = layer->pairs, outputs = layer->outputs;
    const SMIDGEN_FLASH {{weight}} *w = layer->weights + group * layer->group_weights;
    const uint16_t *const other = patch + 4 * pairs;
    int32_t sums[16], o, channel = group * outputs;
@if pooled
    int32_t columns[4], p;

    for (p = 0; p < 4; p++) columns[p] = layer->pool_width > 1 ? (x + p) / layer->pool_width : x + p;
@end
@if bits4
    int32_t over[4] = { 0, 0, 0, 0 };

    for (o = 0; o < 4 * pairs; o += 4) {
        over[0] += patch[o] + patch[o + 1];
        over[1] += patch[o + 2] + patch[o + 3];
        over[2] += other[o] + other[o + 1];
        over[3] += other[o + 2] + other[o + 3];
    }
@end
    for (o = 0; o < outputs; o += 4, channel += 4) {
        const int32_t count = outputs - o < 4 ? outputs - o : 4;

        if (count <= 2) {
            if (from < 2) $dot2(patch, w, {{pair_bytes}} / 2, pairs, sums);
            if (to > 2) $dot2(other, w, {{pair_bytes}} / 2, pairs, sums + 2);
        } else {
#if SMIDGEN_OUTPUTS == 4
            if (from < 2) $dot4(patch, w, pairs, sums);
            if (to > 2) $dot4(other, w, pairs, sums + 2);
#else
            if (from < 2) {
                $dot2(patch, w, {{pair_bytes}}, pairs, sums);
                $dot2(patch, w + {{half_bytes}}, {{pair_bytes}}, pairs, sums + 8);
            }
            if (to > 2) {
                $dot2(other, w, {{pair_bytes}}, pairs, sums + 2);
                $dot2(other, w + {{half_bytes}}, {{pair_bytes}}, pairs, sums + 10);
            }
#endif
            w += {{pair_bytes}} * pairs;
        }
{{calls}}
    }
}
