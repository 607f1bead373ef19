/* A model_config as transformers' config.json: the way back of hf_config.c, which reads the same numbers again. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/model/hf.h"
#include "server/model/hf_write_internal.h"

static const struct {
    const char *arch, *class, *model_type;
} architecture[] = {
    { "llama", "LlamaForCausalLM", "llama" },
    { "mistral", "MistralForCausalLM", "mistral" },
    { "qwen2", "Qwen2ForCausalLM", "qwen2" },
    { "qwen3", "Qwen3ForCausalLM", "qwen3" },
};
enum { N_ARCH = sizeof architecture / sizeof architecture[0] };

/* The row of the table, or -1. A llama with a sliding window is what GGUF files make of Mistral. */
static int find(const struct model_config *c)
{
    const char *arch = c->window > 0 && strcmp(c->arch, "llama") == 0 ? "mistral" : c->arch;
    for (int i = 0; i < N_ARCH; i++)
        if (strcmp(architecture[i].arch, arch) == 0)
            return i;
    return -1;
}

int hf_write_check(const struct model_config *c, struct err *e)
{
    int i = find(c);
    if (i < 0)
        return err_set(e, ERR_UNSUPPORTED, "a config.json of the architecture \"%s\" is not known",
                       c->arch);
    if (c->window > 0 && strcmp(architecture[i].arch, "mistral") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "a config.json of %s with a sliding window (%d tokens) is not read yet",
                       c->arch, c->window);
    return 0;
}

/* The number with the fewest digits that is read as f again: 1e-5, not 9.99999975e-6. */
static double shortest(float f)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f)
            break;
    }
    return strtod(text, NULL);
}

/* hf_config() cuts head_dim * factor down to a whole number. */
static double rotary_factor(const struct model_config *c)
{
    float part = (float)c->rope_dim / (float)c->head_dim;
    while ((int)((float)c->head_dim * part) < c->rope_dim)
        part = nextafterf(part, 2);
    return shortest(part);
}

static json_t *rope_scaling(const struct model_config *c)
{
    if (c->rope_scaling == ROPE_LINEAR)
        return json_pack("{s:s, s:s, s:f}", "rope_type", "linear", "type", "linear", "factor",
                         shortest(c->rope_factor));
    return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
                     shortest(c->rope_factor), "low_freq_factor", shortest(c->rope_low_freq),
                     "high_freq_factor", shortest(c->rope_high_freq),
                     "original_max_position_embeddings", c->rope_ctx);
}

/* The ids that begin and end a text: a folder's own words, which may be a list of ends, else the tokenizer's. */
static int add_ids(json_t *v, const struct source *src, const struct tokenizer *t, struct err *e)
{
    static const char *const key[] = { "bos_token_id", "eos_token_id", "pad_token_id" };
    const int32_t id[] = { tok_bos(t), tok_eos(t), -1 };
    json_t *config = NULL;
    int rc = 0;
    if (src->folder != NULL)
        TRY(folder_read_json(&config, src->folder, "config.json", e));
    for (int i = 0; i < 3; i++) {
        json_t *x = json_object_get(config, key[i]);
        if (x != NULL)
            rc |= json_object_set(v, key[i], x);
        else if (id[i] >= 0)
            rc |= json_object_set_new(v, key[i], json_integer(id[i]));
    }
    json_decref(config);
    return rc == 0 ? 0 : err_set(e, ERR_NOMEM, "no memory for config.json");
}

/* 0, or -1: no memory. */
static int add_forms(json_t *v, json_t *forms, json_t *tensors)
{
    const char *dtype;
    if (json_object_size(forms) == 0)
        return 0;
    int rc = json_object_set_new(v, "quantization_config", hf_forms_config(forms, tensors, &dtype));
    if (dtype != NULL)
        rc |= json_object_set_new(v, "torch_dtype", json_string(dtype));
    return rc;
}

/* 0, or -1: no memory. */
static int add_extras(json_t *v, const struct model_config *c)
{
    int rc = 0;
    if (c->window > 0)
        rc |= json_object_set_new(v, "sliding_window", json_integer(c->window));
    else if (strcmp(c->arch, "mistral") == 0) /* whose window is 4096 where nothing is said */
        rc |= json_object_set_new(v, "sliding_window", json_null());
    if (c->rope_dim < c->head_dim)
        rc |= json_object_set_new(v, "partial_rotary_factor", json_real(rotary_factor(c)));
    if (c->rope_scaling != ROPE_PLAIN)
        rc |= json_object_set_new(v, "rope_scaling", rope_scaling(c));
    return rc;
}

int hf_write_config(const char *folder, const struct model_config *c, const struct source *src,
                    const struct tokenizer *t, json_t *forms, json_t *tensors, struct err *e)
{
    int i = find(c);
    ASSERT(i >= 0);
    json_t *v = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:b}", "architectures",
        architecture[i].class, "model_type", architecture[i].model_type, "hidden_size", c->dim,
        "intermediate_size", c->ffn, "num_hidden_layers", c->n_layers, "num_attention_heads",
        c->n_heads, "num_key_value_heads", c->n_kv_heads, "head_dim", c->head_dim, "vocab_size",
        c->vocab, "max_position_embeddings", c->ctx_train, "rms_norm_eps", shortest(c->norm_eps),
        "rope_theta", shortest(c->rope_theta), "hidden_act", "silu", "tie_word_embeddings",
        c->tied);
    int rc = v == NULL || add_extras(v, c) != 0 || add_forms(v, forms, tensors) != 0
                 ? err_set(e, ERR_NOMEM, "no memory for config.json")
                 : add_ids(v, src, t, e);
    if (rc == 0)
        rc = folder_write_json(folder, "config.json", json_incref(v), e);
    json_decref(v);
    return rc;
}
