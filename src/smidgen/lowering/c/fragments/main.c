/* Classifies an IDX file of images, the form that MNIST comes in:

       cc -std=c99 -O2 -o classify main.c {{prefix}}.c{{libraries}}
       ./classify [--scores] IMAGES [LABELS]

@if names
   prints the class of each image and its name, a line each; with --scores, the scores as they are instead of the
   name. With a file of labels, accuracy goes to standard error. Files must be unpacked (gunzip). Exit status 2: a
   file is not what it should be. */
@else
   prints the class of each image, a line each, with --scores also the scores as they are. With a file of
   labels, accuracy goes to standard error. Files must be unpacked (gunzip). Exit status 2: a file is not
   what it should be. */
@end
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "{{prefix}}.h"

static {{prefix}}_scratch scratch;
static uint8_t image[{{upper}}_PIXELS];

static int fail(const char *path, const char *problem)
{
    fprintf(stderr, "%s: %s\n", path, problem);
    return 2;
}

/* A number of four bytes, the highest first; nothing is read past the end of a file. */
static int number(FILE *file, uint32_t *value)
{
    unsigned char bytes[4];
    if (fread(bytes, 1, 4, file) != 4) return 0;
    *value = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
    return 1;
}

/* The header of an IDX file of bytes: how many there are, and that their sides are as they must be. */
static int header(FILE *file, uint32_t dimensions, const uint32_t *sides, uint32_t *count)
{
    uint32_t value, i;
    if (!number(file, &value) || value != (0x0800 | dimensions) || !number(file, count)) return 0;
    for (i = 0; i + 1 < dimensions; i++)
        if (!number(file, &value) || value != sides[i]) return 0;
    return 1;
}

int main(int argc, char **argv)
{
    static const uint32_t sides[] = { {{upper}}_HEIGHT, {{upper}}_WIDTH, {{upper}}_CHANNELS };
    const int with_scores = argc > 1 && strcmp(argv[1], "--scores") == 0;
    char **const paths = argv + 1 + with_scores;
    const int given = argc - 1 - with_scores;
    FILE *images, *labels = NULL;
    uint32_t count, labelled, i, correct = 0;
    clock_t spent = 0;

    if (given < 1 || given > 2) {
        fprintf(stderr, "usage: %s [--scores] IMAGES [LABELS]\n", argc ? argv[0] : "classify");
        return 2;
    }
    images = fopen(paths[0], "rb");
    if (!images) return fail(paths[0], "cannot be opened");
    if (!header(images, {{upper}}_CHANNELS == 1 ? 3 : 4, sides, &count))
        return fail(paths[0], "is no IDX file of images of {{height}} x {{width}} x {{channels}}");
    if (given == 2) {
        labels = fopen(paths[1], "rb");
        if (!labels) return fail(paths[1], "cannot be opened");
        if (!header(labels, 1, sides, &labelled) || labelled != count)
            return fail(paths[1], "is no IDX file of as many labels as there are images");
    }
    for (i = 0; i < count; i++) {
        const {{score}} *scores;
        clock_t began;
        int label, c;

        if (fread(image, 1, sizeof image, images) != sizeof image) return fail(paths[0], "ends too early");
        began = clock();
        scores = {{prefix}}_scores(image, &scratch);
        label = {{prefix}}_best(scores);
        spent += clock() - began;
        printf("%d", label);
        if (with_scores)
            for (c = 0; c < {{upper}}_CLASSES; c++) printf({{score_format}});
@if names
        else
            printf(" %s", {{prefix}}_names[label]);
@end
        putchar('\n');
        if (labels) {
            const int truth = getc(labels);
            if (truth == EOF) return fail(paths[1], "ends too early");
            correct += truth == label;
        }
    }
    if (fflush(stdout) != 0 || ferror(stdout)) return fail("standard output", "cannot be written");
    if (count) {
        fprintf(stderr, "%lu images, %.1f us each", (unsigned long)count,
                1e6 * (double)spent / (double)CLOCKS_PER_SEC / (double)count);
        if (labels) fprintf(stderr, ", %lu right, %.2f %%", (unsigned long)correct, 100.0 * correct / count);
        fputc('\n', stderr);
    }
    return 0;
}
