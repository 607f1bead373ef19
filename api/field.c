/* Typed JSON members. See field.h. */
#include "api/field.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void join(char *out, size_t size, const char *path, const char *key)
{
    snprintf(out, size, "%s%s%s", path, path[0] && key[0] ? "." : "", key);
}

/* Nesting is counted before the parser sees the text: it recurses, and its own limit is far higher than any request
 * needs. Brackets inside strings do not count; malformed text is left for the parser to describe. */
static bool too_deep(const char *s, size_t n)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted) {
            if (s[i] == '\\')
                i++;
            else if (s[i] == '"')
                quoted = false;
        } else if (s[i] == '"') {
            quoted = true;
        } else if (s[i] == '{' || s[i] == '[') {
            if (++depth > API_MAX_DEPTH)
                return true;
        } else if (s[i] == '}' || s[i] == ']') {
            depth--;
        }
    }
    return false;
}

int field_root(json_t **out, const char *body, size_t n, struct api_error *e)
{
    json_error_t why;

    if (n == 0)
        return api_error_bad(e, NULL, "The request body is empty; a JSON object is expected.");
    if (too_deep(body, n))
        return api_error_bad(e, NULL, "The request body is nested deeper than %d levels.",
                             API_MAX_DEPTH);
    json_t *root = json_loadb(body, n, JSON_REJECT_DUPLICATES, &why);
    if (!root && (json_error_code(&why) == json_error_null_character ||
                  json_error_code(&why) == json_error_null_byte_in_key))
        return api_error_bad(
            e, NULL,
            "The JSON body of your request has \\u0000 in a string (line %d, column "
            "%d). This server takes text without NUL characters.",
            why.line, why.column);
    if (!root) {
        /* The parser's sentence quotes the text near the fault, which may hold a prompt: it goes back to the caller
         * only, never to the log. */
        return api_error_bad(
            e, NULL,
            "We could not parse the JSON body of your request (line %d, column %d): %s. The "
            "server expects a UTF-8 JSON object.",
            why.line, why.column, why.text);
    }
    if (!json_is_object(root)) {
        api_error_bad(e, NULL, "The request body must be a JSON object, not %s.", field_type(root));
        json_decref(root);
        return ERR_INVALID;
    }
    *out = root;
    return 0;
}

json_t *field_get(const struct field_at *at, const char *key)
{
    json_t *v = json_object_get(at->obj, key);
    return json_is_null(v) ? NULL : v;
}

int field_bad(const struct field_at *at, const char *key, const char *fmt, ...)
{
    char path[sizeof(at->err->param)], text[384];
    va_list ap;

    join(path, sizeof(path), at->path, key);
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return api_error_bad(at->err, path, "Invalid '%s': %s", path, text);
}

const char *field_type(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a decimal number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL:
    default: return "null";
    }
}

bool field_integral(const json_t *v, int64_t *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    if (!json_is_real(v))
        return false;
    double d = json_real_value(v);
    if (!(fabs(d) < 9.007199254740992e15) || d != trunc(d))
        return false;
    *out = (int64_t)d;
    return true;
}

int field_bool(const struct field_at *at, const char *key, bool *out)
{
    const json_t *v = field_get(at, key);
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return field_bad(at, key, "expected a boolean, but got %s.", field_type(v));
    *out = json_is_true(v);
    return 0;
}

int field_int(const struct field_at *at, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *v = field_get(at, key);
    int64_t i;
    if (!v)
        return 0;
    if (!field_integral(v, &i))
        return field_bad(at, key, "expected an integer, but got %s.", field_type(v));
    if (i < min)
        return field_bad(at, key,
                         "integer below minimum value. Expected a value >= %lld, but got %lld.",
                         (long long)min, (long long)i);
    if (i > max)
        return field_bad(at, key,
                         "integer above maximum value. Expected a value <= %lld, but got %lld.",
                         (long long)max, (long long)i);
    *out = i;
    return 0;
}

int field_num(const struct field_at *at, const char *key, double min, double max, double *out)
{
    const json_t *v = field_get(at, key);
    if (!v)
        return 0;
    if (!json_is_number(v))
        return field_bad(at, key, "expected a number, but got %s.", field_type(v));
    double d = json_number_value(v);
    if (!(d >= min) && min == FIELD_ABOVE_ZERO)
        return field_bad(at, key, "decimal below minimum value. Expected a value > 0, but got %g.",
                         d);
    if (!(d >= min))
        return field_bad(
            at, key, "decimal below minimum value. Expected a value >= %g, but got %g.", min, d);
    if (!(d <= max))
        return field_bad(
            at, key, "decimal above maximum value. Expected a value <= %g, but got %g.", max, d);
    *out = d;
    return 0;
}

int field_str(const struct field_at *at, const char *key, struct api_str *out)
{
    const json_t *v = field_get(at, key);
    if (!v)
        return 0;
    if (!json_is_string(v))
        return field_bad(at, key, "expected a string, but got %s.", field_type(v));
    out->p = json_string_value(v);
    out->n = json_string_length(v);
    return 0;
}

int field_object(const struct field_at *at, const char *key, json_t **out)
{
    json_t *v = field_get(at, key);
    if (!v)
        return 0;
    if (!json_is_object(v))
        return field_bad(at, key, "expected an object, but got %s.", field_type(v));
    *out = v;
    return 0;
}

int field_array(const struct field_at *at, const char *key, size_t max, json_t **out)
{
    json_t *v = field_get(at, key);
    if (!v)
        return 0;
    if (!json_is_array(v))
        return field_bad(at, key, "expected an array, but got %s.", field_type(v));
    if (json_array_size(v) > max)
        return field_bad(at, key, "array too long. Expected at most %zu items, but got %zu.", max,
                         json_array_size(v));
    *out = v;
    return 0;
}

int field_ids(const json_t *array, const char *path, size_t max, int n_vocab, struct arena *arena,
              const int32_t **ids, int *n_ids, struct api_error *e)
{
    size_t n = json_array_size(array);
    char item[sizeof(e->param)];

    if (n > max)
        return api_error_bad(
            e, path, "Invalid '%s': array too long. Expected at most %zu items, but got %zu.", path,
            max, n);
    int32_t *a = arena_alloc(arena, (n ? n : 1) * sizeof(*a));
    if (!a)
        return api_error_internal(e, "The server ran out of memory.");
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(array, i);
        int64_t id;
        if (field_integral(v, &id) && id >= 0 && id < n_vocab) {
            a[i] = (int32_t)id;
            continue;
        }
        snprintf(item, sizeof(item), "%.90s[%zu]", path, i);
        if (!field_integral(v, &id))
            return api_error_bad(e, item, "Invalid '%s': expected a token id, but got %s.", item,
                                 field_type(v));
        return api_error_bad(
            e, item, "Invalid '%s': token id out of range. Expected 0 <= id < %d, but got %lld.",
            item, n_vocab, (long long)id);
    }
    *ids = a;
    *n_ids = (int)n;
    return 0;
}
