/* From the sums of windows to{{what}}. */
@if scores
static void ${{name}}(const {{in}} *in, int32_t *out, int32_t count, int32_t bias)
{
    int32_t i;
    for (i = 0; i < count; i++) out[i] = in[i] + bias;
}
@else
static void ${{name}}(const {{in}} *in, {{out}} *out, int32_t count, int32_t multiplier, int32_t offset, int32_t shift,
                      int32_t top)
{
    int32_t i;
    for (i = 0; i < count; i++) out[i] = ({{out}})$to_steps(in[i] * multiplier + offset, shift, top);
}
@end
