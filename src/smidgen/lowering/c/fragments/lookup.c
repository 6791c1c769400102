/* A function of each value, from a table. */
static void ${{name}}(const uint8_t *in, {{out}} *out, int32_t count, const SMIDGEN_FLASH {{out}} *table)
{
    int32_t i;
    for (i = 0; i < count; i++) out[i] = table[in[i]];
}
