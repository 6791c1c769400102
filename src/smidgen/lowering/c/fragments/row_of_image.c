    uint8_t *const to = stream->rows + stream->seen % {{rows}} * {{step}};
    int32_t i;

    if (stream->seen >= {{height}}) return;
    for (i = 0; i < {{step}}; i++) to[i] = row[i];
    stream->seen++;
    $advance(&stream->scratch, stream->rows, {{rows}}, stream->seen);
