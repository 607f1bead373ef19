/* Typed access to the members of a JSON object, with the path of the first bad one kept for the error.
 *
 * Absent and null leave *out as it was, so the caller sets defaults first. Every function returns 0 or a negative
 * ERR_* with the error filled. Private to api/.
 */
#ifndef WRING_API_FIELD_H
#define WRING_API_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/request.h"

struct field_at {
    const json_t *obj;
    const char *path; /* of obj, "" at the top */
    struct api_error *err;
};

/* The body as a JSON object within the limits of request.h. */
int field_root(json_t **out, const char *body, size_t n, struct api_error *e) WARN_UNUSED;

/* The member, or NULL when absent or null. */
json_t *field_get(const struct field_at *at, const char *key);
/* 400 with the member's path. */
int field_bad(const struct field_at *at, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

int field_bool(const struct field_at *at, const char *key, bool *out) WARN_UNUSED;
int field_int(const struct field_at *at, const char *key, int64_t min, int64_t max,
              int64_t *out) WARN_UNUSED;
/* A min that excludes 0: the smallest normal float. */
#define FIELD_ABOVE_ZERO 1.2e-38
int field_num(const struct field_at *at, const char *key, double min, double max,
              double *out) WARN_UNUSED;
/* Borrowed from the JSON value. */
int field_str(const struct field_at *at, const char *key, struct api_str *out) WARN_UNUSED;
int field_object(const struct field_at *at, const char *key, json_t **out) WARN_UNUSED;
int field_array(const struct field_at *at, const char *key, size_t max, json_t **out) WARN_UNUSED;

/* An array of token ids in 0..n_vocab-1, at most max of them, copied into the arena. path names it in errors. */
int field_ids(const json_t *array, const char *path, size_t max, int n_vocab, struct arena *arena,
              const int32_t **ids, int *n_ids, struct api_error *e) WARN_UNUSED;
/* The integer value of a JSON number; false when it has a fraction or does not fit. */
bool field_integral(const json_t *v, int64_t *out);
const char *field_type(const json_t *v); /* "an integer", "a string", ... */

#endif
