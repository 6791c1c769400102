/* From what was multiplied and offset to an integer of 0 to top. Nothing negative is shifted, which C leaves open. */
static int32_t $to_steps(int32_t value, int32_t shift, int32_t top)
{
    value = value < 0 ? 0 : value >> shift;
    return value < top ? value : top;
}
