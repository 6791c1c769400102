/* Pixels of 0 to 255 as the network saw them in training: (pixel / 255 - mean) / std. */
static void $normalize(const uint8_t *image, float *out)
{
    int32_t y, i;
    for (y = 0; y < {{height}}; y++)
        for (i = 0; i < {{row}}; i++) out[y * {{out_row}} + i] = (float)image[y * {{row}} + i] * {{scale}} + {{shift}};
}
