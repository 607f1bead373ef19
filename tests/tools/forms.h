/* Every form that a weight can have, for tests of codecs: words that make it, and matrices of random numbers.
 */
#ifndef WRING_TESTS_TOOLS_FORMS_H
#define WRING_TESTS_TOOLS_FORMS_H

#include "quant/codec.h"

enum {
    FORMS = 18,
    FORMS_SINGLE = 6 /* the first ones: panels stand alone in them */,
    FORMS_WIDE = 18,
    FORMS_PUBLISHED = 5
};

struct form {
    const char *word;
    enum dtype from; /* the type on disk */
    const char *form;
};
extern const struct form form_list[FORMS];
/* The forms that list leaves out for the sake of its running time: all that planes come in. Inputs are a multiple of 128. */
extern const struct form form_wide[FORMS_WIDE];
/* Forms that files bring. Their parts are random numbers, the same each time. */
extern const struct form form_published[FORMS_PUBLISHED];

/* rows x cols numbers of a type as on disk: f32 close to normal with deviation 0.05; blocks of random bytes with scales
 * (16 bits near 0.01, either sign). raw holds rows * cols * 4 bytes. */
void form_blocks(enum dtype type, uint8_t *raw, int rows, int cols);
/* Opens w on be and fills it, from raw or, where files bring the form, by parts; through a stage where the host cannot write
 * be's memory. ERR_NOMEM. */
int form_open(struct weight *w, struct be *be, const struct form *f, bool int8_ok, int rows,
              int cols, const uint8_t *raw, struct err *e) WARN_UNUSED;

#endif
