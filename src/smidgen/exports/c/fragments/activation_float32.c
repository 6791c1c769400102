static void ${{name}}(const float *in, float *out, int32_t count{{parameters}})
{
    int32_t i;
    for (i = 0; i < count; i++) {
        const float x = in[i];
        out[i] = {{expression}};
    }
}
