/* Which tokens begin and end a text: tokenizer.json's post_processor and the files beside it.
 *
 * tokenizer_config.json names bos and eos; the post_processor puts them around a text, unless tokenizer_config.json says
 * otherwise; generation_config.json, or config.json where there is none, has the ids that end a generation.
 */
#include <string.h>

#include "server/text/token_json.h"

enum { MAX_EOG = 256 };

/* Ids that a text is put between; -1: none. */
struct around {
    int32_t before, after;
};

/* ---- post_processor ---------------------------------------------------------------------------------------------- */

static int special_id(const json_t *template, const json_t *item, int32_t *id, struct err *e)
{
    const char *name = json_text(json_object_get(item, "SpecialToken"), "id");
    const json_t *ids = json_object_get(
        json_object_get(json_object_get(template, "special_tokens"), name != NULL ? name : ""),
        "ids");
    const json_t *x = json_array_get(ids, 0);
    if (json_array_size(ids) != 1 || !json_is_integer(x) || json_integer_value(x) < 0 ||
        json_integer_value(x) > INT32_MAX)
        return err_set(e, ERR_FORMAT,
                       "tokenizer.json: the post_processor's token \"%.60s\" has no id",
                       name != NULL ? name : "");
    *id = (int32_t)json_integer_value(x);
    return 0;
}

/* [special] sequence [special] */
static int read_template(const json_t *template, struct around *a, struct err *e)
{
    const json_t *single = json_object_get(template, "single");
    bool seen = false;
    json_t *x;
    size_t i;
    json_array_foreach(single, i, x)
    {
        int32_t *id = seen ? &a->after : &a->before;
        if (!seen && json_object_get(x, "Sequence") != NULL)
            seen = true;
        else if (json_object_get(x, "SpecialToken") == NULL || *id >= 0)
            return json_step_unknown("post_processor", template, e);
        else
            TRY(special_id(template, x, id, e));
    }
    return seen ? 0 : json_step_unknown("post_processor", template, e);
}

static int read_post_processor(const json_t *stage, struct around *a, struct err *e)
{
    const json_t *step;
    for (size_t i = 0; (step = json_step(stage, "processors", i)) != NULL; i++) {
        if (json_step_is(step, "TemplateProcessing"))
            TRY(read_template(step, a, e));
        else if (!json_step_is(step, "ByteLevel")) /* which only moves offsets */
            return json_step_unknown("post_processor", step, e);
    }
    return 0;
}

/* ---- the files beside it ----------------------------------------------------------------------------------------- */

/* The token that tokenizer_config.json names, as a text or an object with one. A missing key leaves *id as it is. */
static int named(const struct json_vocab *j, const json_t *config, const char *key, int32_t *id,
                 struct err *e)
{
    const json_t *v = json_object_get(config, key);
    const char *text = json_is_object(v) ? json_text(v, "content") : json_string_value(v);
    if (v == NULL)
        return 0;
    *id = -1;
    if (json_is_null(v))
        return 0;
    for (int i = 0; text != NULL && i < j->v.n; i++)
        if (strcmp(j->text[i], text) == 0) {
            *id = i;
            return 0;
        }
    return err_set(e, ERR_FORMAT, "tokenizer_config.json: %s \"%.60s\" is no token", key,
                   text != NULL ? text : "");
}

/* Id i of one or of a list, -1: none. What is out of range is not -1, so that tok_open refuses it. */
static int32_t listed(const json_t *v, size_t i)
{
    const json_t *x = json_is_array(v) ? json_array_get(v, i) : i == 0 ? v : NULL;
    json_int_t id = json_is_integer(x) ? json_integer_value(x) : -1;
    return id < 0 ? -1 : id > INT32_MAX ? INT32_MAX : (int32_t)id;
}

static int read_eog(struct json_vocab *j, const json_t *ids, struct err *e)
{
    size_t n = json_is_array(ids) ? json_array_size(ids) : json_is_integer(ids) ? 1 : 0;
    if (n > MAX_EOG)
        return err_set(e, ERR_FORMAT, "eos_token_id: %zu tokens end a generation", n);
    if (n == 0)
        return 0;
    j->eog = mem_zalloc(n, sizeof *j->eog);
    if (j->eog == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %zu tokens", n);
    for (size_t i = 0; i < n; i++)
        if (listed(ids, i) >= 0)
            j->eog[j->v.n_eog++] = listed(ids, i);
    j->v.eog = j->eog;
    return 0;
}

static const json_t *generation(const struct json_files *f, const char *key)
{
    const json_t *v = json_object_get(f->generation_config, key);
    return v != NULL ? v : json_object_get(f->config, key);
}

/* An id in range that nothing names; tok_open refuses those out of range. */
static bool is_gap(const struct json_vocab *j, int32_t id)
{
    return id >= 0 && id < j->v.n && j->kind[id] == TOK_UNUSED;
}

int json_read_ends(struct json_vocab *j, const struct json_files *f, struct err *e)
{
    struct around a = { -1, -1 };
    struct tok_vocab *v = &j->v;
    const json_t *eos = generation(f, "eos_token_id");
    TRY(read_post_processor(json_object_get(f->tokenizer, "post_processor"), &a, e));
    TRY(read_eog(j, eos, e));
    v->bos = a.before >= 0 ? a.before : listed(generation(f, "bos_token_id"), 0);
    v->eos = a.after >= 0 ? a.after : listed(eos, 0);
    TRY(named(j, f->tokenizer_config, "bos_token", &v->bos, e));
    TRY(named(j, f->tokenizer_config, "eos_token", &v->eos, e));
    v->add_bos = json_flag(f->tokenizer_config, "add_bos_token", a.before >= 0);
    v->add_eos = json_flag(f->tokenizer_config, "add_eos_token", a.after >= 0);
    if ((v->add_bos && a.before >= 0 && a.before != v->bos) ||
        (v->add_eos && a.after >= 0 && a.after != v->eos))
        return err_set(
            e, ERR_UNSUPPORTED,
            "tokenizer.json: the post_processor puts tokens %d and %d around a text, but "
            "bos is %d and eos is %d",
            (int)a.before, (int)a.after, (int)v->bos, (int)v->eos);
    if (is_gap(j, v->bos) || is_gap(j, v->eos))
        return err_set(e, ERR_FORMAT, "tokenizer.json: no token has the id of bos, %d, or eos, %d",
                       (int)v->bos, (int)v->eos);
    return 0;
}
