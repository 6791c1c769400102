/* A row of one value as the row of some channels of another, to steps of that one. */
static void ${{name}}(const {{in}} *in, {{out}} *out, int32_t count, int32_t multiplier, int32_t offset, int32_t shift,
                      int32_t top)
{
    int32_t i;
    for (i = 0; i < count; i++) out[i] = ({{out}})$to_steps((int32_t)in[i] * multiplier + offset, shift, top);
}
