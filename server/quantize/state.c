/* OUT.part/quantize.json: what the run that began it was asked for, and what pressing each matrix lost. It stays in OUT, to
 * say how the model was made; nothing in it depends on when or how often the work was interrupted. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "server/model/arch.h"
#include "server/model/folder.h"
#include "server/quantize/allocate.h"

enum { VERSION = 4 };

/* OUT.part; a run that writes no model has its notes in OUT. */
static const char *notes_folder(const struct quantize *q)
{
    return q->out != NULL ? hf_write_folder(q->out) : q->config->word[1];
}

static int no_memory(struct err *e)
{
    return err_set(e, ERR_NOMEM, "no memory for the notes");
}

/* ---- what was asked for ------------------------------------------------------------------------------------------ */

static json_t *hex(uint64_t v)
{
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)v);
    return json_string(text);
}

/* What the tensors do not say of the model. */
static uint64_t config_hash(const struct model_config *m)
{
    char text[256];
    int n = snprintf(text, sizeof text, "%d %d %d %d %d %.9g %d %.9g %d %d %d %.9g %.9g %.9g %d",
                     m->n_layers, m->dim, m->n_heads, m->n_kv_heads, m->head_dim,
                     (double)m->norm_eps, m->window, (double)m->rope_theta, m->rope_dim,
                     (int)m->rope_half_split, (int)m->rope_scaling, (double)m->rope_factor,
                     (double)m->rope_low_freq, (double)m->rope_high_freq, m->rope_ctx);
    return XXH3_64bits(text, strnlen(text, n > 0 ? sizeof text : 0));
}

/* NULL: no memory. cpu: its levels add up in other orders. */
static json_t *make_options(const struct quantize *q)
{
    const struct config *c = q->config;
    bool chooses = quantize_has_budget(c) || c->pareto[0] != 0;
    const char *allocate = chooses ? c->allocate : "uniform";
    int64_t generations = strcmp(allocate, "evopress") == 0 ? c->generations : 0;
    size_t bytes = (size_t)q->text.n * (size_t)q->text.len * sizeof *q->text.token;
    return json_pack(
        "{s:i, s:s, s:f, s:I, s:s, s:I, s:s, s:i, s:i, s:f, s:I, s:i, s:i, s:s, s:o, s:o, s:o}",
        "version", VERSION, "codec", quantize_codec(c), "bits", c->bits, "size",
        (json_int_t)c->size, "allocate", allocate, "generations", (json_int_t)generations, "head",
        quantize_head(c), "tokens", q->text.n * q->text.len, "context", q->text.len, "damp",
        c->damp, "fisher", (json_int_t)quantize_fisher_tokens(q), "tune", (int)c->tune,
        "tune_codes", (int)c->tune_codes, "cpu", cpu_isa_name(q->session.be->isa), "model",
        hex(model_hash(q->model)), "config", hex(config_hash(&q->model->config)), "calibrate",
        hex(XXH3_64bits(q->text.token, bytes)));
}

static int append(const char *text, size_t n, void *out)
{
    return buf_add(out, text, n);
}

/* As the file has it; "" where there is nothing, or no memory. */
static void to_text(const json_t *v, struct buf *out)
{
    buf_init(out, 4096);
    if (v != NULL && json_dump_callback(v, append, out, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)))
        buf_clear(out);
}

static int compare_option(const char *folder, const char *key, const json_t *was, const json_t *is,
                          struct err *e)
{
    struct buf a;
    struct buf b;
    int rc = 0;
    to_text(was, &a);
    to_text(is, &b);
    if (b.len == 0)
        rc = no_memory(e);
    else if (strcmp(buf_str(&a), buf_str(&b)) != 0)
        rc = err_set(e, ERR_INVALID,
                     "%s was begun with %s %s, now it is %s: ask for the same again, or start over "
                     "with --force",
                     folder, key, a.len > 0 ? buf_str(&a) : "unknown", buf_str(&b));
    buf_free(&a);
    buf_free(&b);
    return rc;
}

static int compare(const char *folder, const json_t *state, json_t *options, struct err *e)
{
    const json_t *was = json_object_get(state, "options");
    const char *key;
    json_t *is;
    json_object_foreach(options, key, is)
    {
        const json_t *then = json_object_get(was, key);
        if (then == NULL && strcmp(key, "fisher") == 0 && json_integer_value(is) == 0)
            continue; /* begun when all rows counted alike */
        TRY(compare_option(folder, key, then, is, e));
    }
    return 0;
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static int read_state(struct quantize *q, struct err *e)
{
    const char *folder = notes_folder(q);
    TRY(folder_read_json(&q->state, folder, QUANTIZE_NOTES, e));
    if (json_is_object(json_object_get(q->state, "matrices")))
        return 0;
    return err_set(e, ERR_FORMAT, "%s/%s is damaged; start over with --force", folder,
                   QUANTIZE_NOTES);
}

static int begin_state(struct quantize *q, json_t *options, struct err *e)
{
    for (int i = 0; i <= q->model->config.n_layers && q->out != NULL; i++)
        if (hf_write_has_shard(q->out, i))
            return err_set(e, ERR_INVALID,
                           "%s holds a model that wring quantize did not begin; remove it",
                           notes_folder(q));
    q->state = json_pack("{s:O, s:{}}", "options", options, "matrices");
    return q->state != NULL ? quantize_state_save(q, e) : no_memory(e);
}

static void remove_rest(const char *folder)
{
    char path[FOLDER_PATH];
    DIR *d = opendir(folder);
    for (const struct dirent *f; d != NULL && (f = readdir(d)) != NULL;)
        if ((file_is_rest(f->d_name, QUANTIZE_NOTES) || file_is_rest(f->d_name, QUANTIZE_TUNED)) &&
            folder_path(path, folder, f->d_name, NULL) == 0)
            (void)unlink(path);
    if (d != NULL)
        closedir(d);
}

int quantize_state_open(struct quantize *q, struct err *e)
{
    const char *folder = notes_folder(q);
    remove_rest(folder);
    json_t *options = make_options(q);
    if (options == NULL)
        return no_memory(e);
    int rc = 0;
    if (!folder_has(folder, QUANTIZE_NOTES))
        rc = begin_state(q, options, e);
    else if ((rc = read_state(q, e)) == 0)
        rc = compare(folder, q->state, options, e);
    json_decref(options);
    return rc;
}

int quantize_state_same(const struct quantize *q, const char *folder, struct err *e)
{
    json_t *state;
    TRY(folder_read_json(&state, folder, QUANTIZE_NOTES, e));
    json_t *options = make_options(q);
    int rc = options != NULL ? compare(folder, state, options, e) : no_memory(e);
    json_decref(options);
    json_decref(state);
    return rc;
}

int quantize_state_save(struct quantize *q, struct err *e)
{
    return folder_write_json(notes_folder(q), QUANTIZE_NOTES, json_incref(q->state), e);
}

/* Bits a weight in the file; in memory a matrix may have more than its parts. */
static double bits_of(const struct weight *w)
{
    struct codec_part part[CODEC_PARTS];
    size_t bytes = 0;
    for (int i = weight_parts(w, part) - 1; i >= 0; i--)
        bytes += codec_part_bytes(&part[i]);
    return 8 * (double)bytes / ((double)w->rows * w->cols);
}

int quantize_state_note(struct quantize *q, const struct pressed *p, struct err *e)
{
    if (!isfinite(p->error))
        return err_set(e, ERR_FORMAT, "%s: what was pressed is no number, or what it reads",
                       p->slot->name);
    json_t *note = json_pack("{s:s, s:f, s:f}", "form", weight_form(&p->w), "bits", bits_of(&p->w),
                             "error", p->error);
    json_t *all = json_object_get(q->state, "matrices");
    return json_object_set_new(all, p->slot->name, note) == 0 ? 0 : no_memory(e);
}

static json_t *child(json_t *v, const char *key)
{
    json_t *c = json_object_get(v, key);
    if (c == NULL && json_object_set_new(v, key, json_object()) == 0)
        c = json_object_get(v, key);
    return c;
}

int quantize_state_map(struct quantize *q, const char *key, json_t **out, struct err *e)
{
    json_t *all = child(q->state, "allocation");
    *out = all != NULL ? child(all, key) : NULL;
    return *out != NULL ? 0 : no_memory(e);
}

const json_t *quantize_state_find(const struct quantize *q, const char *name)
{
    return json_object_get(json_object_get(q->state, "matrices"), name);
}

const json_t *quantize_state_tuned(const struct quantize *q)
{
    return json_object_get(q->state, "tune");
}

int quantize_state_tune(struct quantize *q, json_t *note, struct err *e)
{
    if (note == NULL || json_object_set_new(q->state, "tune", note) != 0)
        return no_memory(e);
    return quantize_state_save(q, e);
}
