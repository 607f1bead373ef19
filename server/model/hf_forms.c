/* "quantization_config" of config.json: which matrices of a folder are pressed, and in which form. Our own:
 *
 *     "quantization_config": {
 *       "quant_method": "wring",
 *       "version": 2,
 *       "forms": { "lm_head": "q8", "model.layers.0.self_attn.q_proj": "q4", ... }
 *     }
 *
 * A module that is named there has no tensor "<module>.weight" but one for each part of the form (quant/codec.h):
 * "<module>.codes", "<module>.scales", ... Version 1 differs in the codes of pvq only, whose points had other numbers. */
#include <stdio.h>
#include <string.h>

#include "server/model/hf.h"

enum { FIRST_VERSION = 1, PVQ_VERSION = 2, VERSION = 2 };

static int add_form(struct source *s, struct arena *a, const char *module, const char *word,
                    struct err *e)
{
    char name[HF_NAME];
    if (word == NULL)
        return err_set(e, ERR_FORMAT, "\"quantization_config\": the form of \"%.80s\" is no string",
                       module);
    int n = snprintf(name, sizeof name, "%s.weight", module);
    if (n < 0 || n >= HF_NAME)
        return err_set(e, ERR_LIMIT, "\"quantization_config\": the name \"%.80s...\" is too long",
                       module);
    const char *matrix = hf_canonical(a, name);
    const char *form = arena_strndup(a, word, strlen(word));
    if (matrix == NULL || form == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the forms of weights");
    return source_add_form(s, matrix, form, e);
}

static int wring_forms(struct source *s, struct arena *a, const json_t *q, struct err *e)
{
    json_int_t version = json_integer_value(json_object_get(q, "version")); /* or 0 */
    json_t *forms = json_object_get(q, "forms");
    const char *module;
    json_t *word;
    if (version < FIRST_VERSION || version > VERSION)
        return err_set(e, ERR_UNSUPPORTED,
                       "\"quantization_config\": version %lld is not known; this program reads %d "
                       "to %d",
                       (long long)version, FIRST_VERSION, VERSION);
    if (!json_is_object(forms))
        return err_set(e, ERR_FORMAT, "\"quantization_config\": \"forms\" is missing");
    json_object_foreach(forms, module, word)
    {
        const char *form = json_string_value(word);
        if (version < PVQ_VERSION && form != NULL && strstr(form, "pvq") != NULL)
            return err_set(e, ERR_UNSUPPORTED,
                           "\"quantization_config\": \"%.80s\" is %.40s of version %lld, whose "
                           "points had other numbers; press the model again",
                           module, form, (long long)version);
        TRY(add_form(s, a, module, form, e));
    }
    return 0;
}

static bool wring_takes(json_t *forms)
{
    (void)forms;
    return true;
}

static json_t *wring_config(json_t *forms, json_t *tensors)
{
    (void)tensors;
    return json_pack("{s:s, s:i, s:O}", "quant_method", "wring", "version", VERSION, "forms",
                     forms);
}

/* What others read too comes first. */
static const struct hf_method method[] = {
    { "aqlm", hf_aqlm_forms, hf_aqlm_takes, hf_aqlm_config },
    { "wring", wring_forms, wring_takes, wring_config },
};

json_t *hf_forms_config(json_t *forms, json_t *tensors, const char **dtype)
{
    const struct hf_method *m = method;
    while (!m->takes(forms))
        m++;
    *dtype = m->config == wring_config ? NULL : "float16";
    return m->config(forms, tensors);
}

int hf_method(const struct hf_method **out, const json_t *v, struct err *e)
{
    const json_t *q = json_object_get(v, "quantization_config");
    const char *name = json_string_value(json_object_get(q, "quant_method"));
    *out = NULL;
    if (q == NULL && json_is_object(json_object_get(v, "aqlm")))
        name = "aqlm"; /* folders from before there was a "quantization_config" */
    else if (q == NULL || json_is_null(q))
        return 0;
    for (size_t i = 0; name != NULL && i < sizeof method / sizeof method[0]; i++)
        if (strcmp(name, method[i].name) == 0) {
            *out = &method[i];
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED,
                   "\"quantization_config\": quant_method \"%.80s\" is not supported; wring and "
                   "aqlm are",
                   name != NULL ? name : "?");
}
