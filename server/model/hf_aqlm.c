/* Folders of models pressed by AQLM, as they are published. Two generations:
 *
 *     "quantization_config": { "quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 2,
 *                              "nbits_per_codebook": 8, "linear_weights_not_to_quantize": ["lm_head.weight", ...] }
 *     "aqlm": { the same four numbers }
 *
 * A matrix is pressed where its module has codes, codebooks or scales. The list, of tensors, or of modules in newer folders
 * ("modules_to_not_convert"), has to agree. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/model/hf.h"

enum { PARTS = 3 };
static const char *const part[PARTS] = { "codes", "codebooks", "scales" };

#define WHERE "\"quantization_config\": "

/* The number of this key, which is there and within [least, most]. */
static int get_number(const json_t *q, const char *key, int least, int most, int *out,
                      struct err *e)
{
    const json_t *x = json_object_get(q, key);
    if (!json_is_integer(x))
        return err_set(e, ERR_FORMAT, WHERE "\"%s\" %s; a whole number is needed", key,
                       x == NULL ? "is missing" : "is something else");
    json_int_t v = json_integer_value(x);
    if (v < least || v > most)
        return err_set(e, ERR_UNSUPPORTED, WHERE "\"%s\" is %lld; %d to %d is supported", key,
                       (long long)v, least, most);
    *out = (int)v;
    return 0;
}

/* The form of all pressed matrices. */
static int get_form(const json_t *q, struct arena *a, const char **out, struct err *e)
{
    char word[64];
    int group = 0;
    int across = 0;
    int books = 0;
    int bits = 0;
    TRY(get_number(q, "in_group_size", 8, 32, &group, e));
    TRY(get_number(q, "out_group_size", 1, 1, &across, e));
    TRY(get_number(q, "num_codebooks", 1, 8, &books, e));
    TRY(get_number(q, "nbits_per_codebook", 1, 16, &bits, e));
    if (group != 8 && group != 16 && group != 32)
        return err_set(e, ERR_UNSUPPORTED,
                       WHERE "\"in_group_size\" is %d; 8, 16 and 32 are supported", group);
    int n = snprintf(word, sizeof word, "aqlm%dx%dg%d", books, bits, group);
    *out = arena_strndup(a, word, (size_t)n);
    return *out != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for the forms of weights");
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

/* The matrix that a tensor is a part of, in a; out NULL: of none. */
static int matrix_of(const char *tensor, struct arena *a, const char **out, struct err *e)
{
    char name[HF_NAME];
    const char *dot = strrchr(tensor, '.');
    *out = NULL;
    for (int i = 0; dot != NULL && i < PARTS; i++) {
        if (strcmp(dot + 1, part[i]) != 0)
            continue;
        int n = snprintf(name, sizeof name, "%.*s.weight", (int)(dot - tensor), tensor);
        if (n < 0 || n >= HF_NAME)
            return err_set(e, ERR_LIMIT, "the name %.80s... is too long", tensor);
        *out = arena_strndup(a, name, (size_t)n);
        if (*out == NULL)
            return err_set(e, ERR_NOMEM, "no memory for the forms of weights");
    }
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The names of all pressed matrices to out [tensors of s], sorted, each once; returns how many. */
static int find_pressed(const struct source *s, struct arena *a, const char **out, struct err *e)
{
    int n = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        TRY(matrix_of(s->tensor[i].name, a, &out[n], e));
        n += out[n] != NULL;
    }
    qsort(out, (size_t)n, sizeof *out, by_text);
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (kept == 0 || strcmp(out[kept - 1], out[i]) != 0)
            out[kept++] = out[i];
    return kept;
}

/* No matrix of the list may be pressed. */
static int check_list(const json_t *list, struct arena *a, const char *const *pressed, int n,
                      struct err *e)
{
    char name[HF_NAME];
    size_t i;
    const json_t *x;
    json_array_foreach(list, i, x)
    {
        const char *word = json_string_value(x);
        if (word == NULL)
            return err_set(e, ERR_FORMAT, WHERE "the list of modules not pressed: no string at %zu",
                           i);
        const char *dot = strrchr(word, '.');
        bool tensor = dot != NULL && strcmp(dot, ".weight") == 0;
        int len = snprintf(name, sizeof name, "%s%s", word, tensor ? "" : ".weight");
        if (len < 0 || len >= HF_NAME)
            continue; /* longer than any matrix's name */
        const char *matrix = hf_canonical(a, name);
        if (matrix == NULL)
            return err_set(e, ERR_NOMEM, "no memory for the forms of weights");
        if (bsearch(&matrix, pressed, (size_t)n, sizeof matrix, by_text) != NULL)
            return err_set(e, ERR_FORMAT,
                           WHERE "\"%s\" is listed as not pressed, but has codes or codebooks",
                           word);
    }
    return 0;
}

static int add_forms(struct source *s, struct arena *a, const json_t *q, const char **pressed,
                     struct err *e)
{
    const char *word;
    TRY(get_form(q, a, &word, e));
    int n = find_pressed(s, a, pressed, e);
    TRY(n);
    if (n == 0)
        return err_set(e, ERR_FORMAT, WHERE "the method is aqlm, but no module has codes");
    TRY(check_list(json_object_get(q, "linear_weights_not_to_quantize"), a, pressed, n, e));
    TRY(check_list(json_object_get(q, "modules_to_not_convert"), a, pressed, n, e));
    for (int i = 0; i < n; i++)
        TRY(source_add_form(s, pressed[i], word, e));
    return 0;
}

int hf_aqlm_forms(struct source *s, struct arena *a, const json_t *q, struct err *e)
{
    const char **pressed = mem_zalloc((size_t)s->n_tensors + 1, sizeof *pressed);
    if (pressed == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the forms of weights");
    int rc = add_forms(s, a, q, pressed, e);
    mem_free(pressed);
    return rc;
}

/* ---- the way back ------------------------------------------------------------------------------------------------ */

struct shape {
    int books, bits, group;
};

static bool shape_of(const char *word, struct shape *s)
{
    int end = 0;
    return sscanf(word, "aqlm%dx%dg%d%n", &s->books, &s->bits, &s->group, &end) == 3 &&
           word[end] == 0;
}

/* There is one shape for all of a folder's matrices, and embedding and head are plain. */
bool hf_aqlm_takes(json_t *forms)
{
    const char *first = json_string_value(json_object_iter_value(json_object_iter(forms)));
    const char *module;
    json_t *word;
    struct shape s;
    if (first == NULL || !shape_of(first, &s) || json_object_get(forms, "lm_head") != NULL ||
        json_object_get(forms, "model.embed_tokens") != NULL)
        return false;
    json_object_foreach(forms, module,
                        word) if (strcmp(json_string_value(word), first) != 0) return false;
    return true;
}

/* Adds the tensor, and the module whose weight it is: transformers compares the list with tensors up to version 4, with modules
 * from 5 on. 0, or -1: no memory. */
static int add_plain(json_t *list, const char *tensor)
{
    const char *dot = strrchr(tensor, '.');
    int rc = json_array_append_new(list, json_string(tensor));
    if (dot != NULL && strcmp(dot, ".weight") == 0)
        rc |= json_array_append_new(list, json_stringn(tensor, (size_t)(dot - tensor)));
    return rc;
}

static bool is_part(const char *tensor)
{
    const char *dot = strrchr(tensor, '.');
    for (int i = 0; dot != NULL && i < PARTS; i++)
        if (strcmp(dot + 1, part[i]) == 0)
            return true;
    return false;
}

/* The head is listed even where it is the embedding and has no tensor. */
static json_t *plain_tensors(json_t *tensors)
{
    static const char head[] = "lm_head.weight";
    json_t *list = json_array();
    int rc = list == NULL;
    const char *name;
    json_t *file;
    json_object_foreach(tensors, name, file) if (!is_part(name)) rc |= add_plain(list, name);
    if (json_object_get(tensors, head) == NULL)
        rc |= add_plain(list, head);
    if (rc == 0)
        return list;
    json_decref(list);
    return NULL;
}

json_t *hf_aqlm_config(json_t *forms, json_t *tensors)
{
    struct shape s;
    shape_of(json_string_value(json_object_iter_value(json_object_iter(forms))), &s);
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:o}", "quant_method", "aqlm", "in_group_size",
                     s.group, "out_group_size", 1, "num_codebooks", s.books, "nbits_per_codebook",
                     s.bits, "linear_weights_not_to_quantize", plain_tensors(tensors));
}
