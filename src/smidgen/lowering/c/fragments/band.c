/* Makes the rows of a band, which begin with row `top`, then what rows can be made with those. */
static void $band($scratch *scratch, const uint8_t *image, int32_t top)
{
    uint8_t *const memory = (uint8_t *)scratch->memory;
    int32_t given, column = 0, c, i;

    for (i = 0; i < {{stages}}; i++) scratch->made[i] = 0;
    for (given = 1; given <= {{image_columns}}; given++) {
        $advance_band(scratch, image, {{image_columns}}, given);
        for (; column < {{made}}; column++) {
            const uint8_t *from = memory + {{from}} + column % {{band_ring}} * {{column_bytes}};
            for (c = 0; c < {{channels}}; c++)
                for (i = 0; i < {{rows}}; i++)
                    memory[{{to}} + (top + i) % {{ring}} * {{row_bytes}} + c * {{columns}} + column] = *from++;
        }
    }
    $advance(scratch, top + {{rows}});
}
