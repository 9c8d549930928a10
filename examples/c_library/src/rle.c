/* Run-length decoding, as people wrote it in a hurry: "3a2b" stands for "aaabb". */

#include <stdlib.h>
#include <string.h>

struct decoder {
    char text[64]; /* will do */
    size_t (*measure)(const char *);
};

struct decoder *decoder_new(void)
{
    struct decoder *d = calloc(1, sizeof *d);
    if (d)
        d->measure = strlen;
    return d;
}

/* The length of what `in` stands for. What is longer than 63 bytes is written over the decoder's end. */
size_t decoder_length(struct decoder *d, const char *in)
{
    char *out = d->text;
    for (; in[0] && in[1]; in += 2)
        for (int n = in[0] - '0'; n > 0; n--)
            *out++ = in[1];
    *out = '\0';
    return d->measure(d->text);
}

void decoder_free(struct decoder *d)
{
    free(d);
}
