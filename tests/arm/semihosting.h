void write_text(const char *text);
