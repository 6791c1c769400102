/* Pixels of 0 to 255 as the network saw them in training: (pixel / 255 - mean) / std. */
static void $normalize(const uint8_t *image, float *out)
{
    int32_t i;
    for (i = 0; i < {{pixels}}; i++) out[i] = (float)image[i] * {{scale}} + {{shift}};
}
