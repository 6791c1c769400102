static void ${{name}}({{type}} *out, int32_t count)
{
    while (count > 0) out[--count] = 0;
}
