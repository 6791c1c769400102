    int32_t i;

    if (stream->seen >= {{height}}) return;
    stream->seen++;
    if (stream->top > {{last}}) return; /* the last rows of the image are not needed */
    for (i = 0; i < {{step}} && stream->kept >= 0; i++) stream->rows[stream->kept * {{step}} + i] = row[i];
    if (++stream->kept == {{kept}}) {
        const int32_t next = stream->top + {{rows}} < {{last}} ? stream->top + {{rows}} : {{last}};
        const int32_t gone = (next - stream->top) * {{move}};

        $band(&stream->scratch, stream->rows, stream->top);
        for (i = gone * {{step}}; i < {{kept}} * {{step}}; i++) stream->rows[i - gone * {{step}}] = stream->rows[i];
        stream->kept -= gone;
        stream->top = stream->top == {{last}} ? {{last}} + 1 : next;
    }
