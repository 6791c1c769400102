static SMIDGEN_APART void $finish_{{sink}}(const SMIDGEN_FLASH struct $outputs_layer *layer, const int32_t *sums,
                                         int32_t channel, int32_t count, int32_t from, int32_t to,{{over}}
                                         {{columns}}, {{type}} *out)
{
    const int32_t step = layer->step, base = layer->shift, bias_shift = layer->bias_shift;
    const SMIDGEN_FLASH int16_t *bias = layer->bias + channel;
    const SMIDGEN_FLASH uint16_t *packed = layer->multipliers + channel;
    int32_t p;
@if after
    const SMIDGEN_FLASH int32_t *factors = layer->factors ? layer->factors + 2 * channel : 0;
@end

    out += channel * step{{start}};
    do {
        const int32_t start = (int32_t)*bias++ * ((int32_t)1 << bias_shift);
@if after
        const int32_t multiplier = factors ? *factors++ : *packed & 4095;
        const int32_t shift = factors ? base : base + (*packed >> 12);
        const int32_t offset = factors ? *factors++ : 0;

        if (!factors) packed++;
@else
        const int32_t multiplier = *packed & 4095, shift = base + (*packed >> 12);

        packed++;
@end
        p = from;
        do {
@if bits4
            int32_t value = sums[p] + start - 8 * over[p];
@else
            int32_t value = sums[p] + start;
@end
@if after
            if (value < 0 && (!factors || layer->relu)) value = 0;
@if before
            if (!factors) value >>= layer->before;
@end
            value = value * multiplier + offset;
            value = value < 0 ? 0 : value;
            value >>= shift;
@else
            value = value < 0 ? 0 : value;
@if before
            value >>= layer->before;
@end
            value = (value * multiplier) >> shift;
@end
            if (value > 255) value = 255;
            {{store}}
        } while (++p < to);
        sums += 4;
        out += step;
    } while (--count > 0);
}
