#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/model/folder.h"
#include "server/quantize/allocate.h"

/* ---- the folder -------------------------------------------------------------------------------------------------- */

/* --forms, or OUT.forms. */
static int bank_folder(char out[FOLDER_PATH], const struct config *c, struct err *e)
{
    bool kept = c->forms[0] != 0;
    return folder_beside(out, kept ? c->forms : c->word[1], kept ? "" : ".forms", e);
}

static int form_folder(char out[FOLDER_PATH], const struct config *c, const char *form,
                       struct err *e)
{
    char folder[FOLDER_PATH];
    TRY(bank_folder(folder, c, e));
    return folder_path(out, folder, form, e);
}

void bank_remove(const struct quantize *q)
{
    char path[FOLDER_PATH];
    struct family f;
    struct err e;
    const struct config *c = q->config;
    if (c->forms[0] != 0 || family_find(&f, q->session.be, quantize_codec(c), &e) < 0)
        return;
    for (int i = 0; i < f.n; i++) {
        char part[FORM_NAME + 8];
        snprintf(part, sizeof part, "%s.part", f.word[i]);
        if (form_folder(path, c, f.word[i], &e) == 0 && folder_has(path, QUANTIZE_NOTES))
            fetch_remove(path);
        if (form_folder(path, c, part, &e) == 0 && folder_has(path, QUANTIZE_NOTES))
            fetch_remove(path);
    }
    if (bank_folder(path, c, &e) == 0)
        (void)rmdir(path); /* stays where something else is in it */
}

/* ---- filling ----------------------------------------------------------------------------------------------------- */

/* What wring quantize --codec FORM would do: nothing depends on who asks for the bank. */
static int fill_form(struct quantize *q, char *form, struct err *e)
{
    char path[FOLDER_PATH];
    char none[] = "";
    struct config c = *q->config;
    TRY(form_folder(path, q->config, form, e));
    c.word[1] = path;
    c.codec = form;
    c.pareto = none;
    c.bits = 0;
    c.size = 0;
    c.generations = 0;
    c.tune = 0;
    c.tune_codes = 0;
    c.force = false;
    int rc = quantize_whole(q, &c, e);
    if (rc == ERR_INVALID && q->config->forms[0] != 0)
        return err_prefix(e, "forms: %s is kept, --force or not: name another folder", path);
    return rc == ERR_INVALID ? err_prefix(e, "forms") : rc;
}

int bank_fill(struct allocation *a, struct err *e)
{
    char path[FOLDER_PATH];
    TRY(bank_folder(path, a->q->config, e));
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return err_errno(e, ERR_IO, "%s: cannot make the folder", path);
    for (int c = 0; c < a->family.n; c++)
        TRY(fill_form(a->q, a->family.word[c], e));
    return 0;
}

int bank_errors(struct allocation *a, struct err *e)
{
    char path[FOLDER_PATH];
    for (int c = 0; c < a->family.n; c++) {
        json_t *notes;
        TRY(form_folder(path, a->q->config, a->family.word[c], e));
        TRY(folder_read_json(&notes, path, QUANTIZE_NOTES, e));
        const json_t *all = json_object_get(notes, "matrices");
        for (int i = 0; i < a->n; i++)
            a->matrix[i].error[c] = json_number_value(
                json_object_get(json_object_get(all, a->matrix[i].slot->name), "error"));
        json_decref(notes);
    }
    return 0;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

static int open_forms(struct bank *b, const struct allocation *a, struct err *e)
{
    struct model_options o;
    char path[FOLDER_PATH];
    struct be *be = a->q->session.be;
    TRY(session_options(&o, a->q->config, be, true, e));
    o.int8 = false;
    for (int c = 0; c < a->family.n; c++) {
        TRY(form_folder(path, a->q->config, a->family.word[c], e));
        TRY(model_open(&b->form[c], path, &o, be, e));
    }
    return 0;
}

/* The slots of the matrices, which are the same in all forms: those have one architecture. */
static int find_slots(struct bank *b, const struct allocation *a, struct err *e)
{
    const struct model *m = b->form[0];
    b->own = mem_zalloc((size_t)m->n_slots, sizeof *b->own);
    b->slot = mem_zalloc((size_t)a->n + 1, sizeof *b->slot);
    if (b->own == NULL || b->slot == NULL) {
        mem_free(b->own); /* its zeros are nobody's weights */
        b->own = NULL;
        return err_set(e, ERR_NOMEM, "no memory for %d matrices", a->n);
    }
    for (int i = 0; i < m->n_slots; i++)
        if (m->slot[i].w != NULL)
            b->own[i] = *m->slot[i].w;
    for (int i = 0; i < a->n; i++) {
        const char *name = a->matrix[i].slot->name;
        while (b->slot[i] < m->n_slots && strcmp(m->slot[b->slot[i]].name, name) != 0)
            b->slot[i]++;
        ASSERT(b->slot[i] < m->n_slots);
    }
    return 0;
}

int bank_open(struct bank *b, const struct allocation *a, struct err *e)
{
    *b = (struct bank){ 0 };
    int rc = open_forms(b, a, e);
    if (rc == 0)
        rc = find_slots(b, a, e);
    if (rc < 0)
        bank_close(b);
    return rc;
}

void bank_splice(struct bank *b, const struct allocation *a, const int *choice)
{
    for (int i = 0; i < a->n; i++) {
        int at = b->slot[i];
        *b->form[0]->slot[at].w = choice[i] == 0 ? b->own[at] : *b->form[choice[i]]->slot[at].w;
    }
}

void bank_close(struct bank *b)
{
    for (int i = 0; b->own != NULL && i < b->form[0]->n_slots; i++)
        if (b->form[0]->slot[i].w != NULL)
            *b->form[0]->slot[i].w = b->own[i];
    for (int c = 0; c < FAMILY_FORMS; c++)
        model_close(b->form[c]);
    mem_free(b->slot);
    mem_free(b->own);
    *b = (struct bank){ 0 };
}
