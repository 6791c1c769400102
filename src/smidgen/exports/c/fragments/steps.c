/* From a sum, multiplied and offset, to an integer of 0 to top. Nothing negative is shifted, which C leaves open. */
static int32_t $to_steps(int64_t value, uint8_t shift, uint16_t top)
{
    if (value < 0) return 0;
    value >>= shift;
    return value < top ? (int32_t)value : top;
}
