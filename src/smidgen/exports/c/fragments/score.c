/* From a sum, multiplied, to a score: divided by 2^30 and rounded down. What is shifted is made positive first. */
static int32_t $to_score(int64_t value)
{
    return (int32_t)((int64_t)(((uint64_t)value + ((uint64_t)1 << 62)) >> 30) - ((int64_t)1 << 32));
}
