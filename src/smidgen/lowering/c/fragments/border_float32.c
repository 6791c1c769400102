/* Zeros around a value, for kernels that look beyond it. */
static void $border(float *out, int32_t rows, int32_t row, int32_t border, int32_t side)
{
    int32_t y, i;

    for (y = 0; y < rows; y++, out += row)
        for (i = 0; i < row; i++)
            if (y < border || y >= rows - border || i < side || i >= row - side) out[i] = 0.0f;
}
