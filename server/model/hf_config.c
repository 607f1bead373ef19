/* config.json of transformers' llama family to a model_config. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/model/hf.h"

static const struct {
    const char *hf, *arch;
} architecture[] = {
    { "LlamaForCausalLM", "llama" },
    { "MistralForCausalLM", "mistral" },
    { "Qwen2ForCausalLM", "qwen2" },
    { "Qwen3ForCausalLM", "qwen3" },
};

/* A whole number from 1; with needed false a missing or null one becomes `otherwise`. */
static int get_int(const json_t *v, const char *key, bool needed, int otherwise, int *out,
                   struct err *e)
{
    const json_t *x = json_object_get(v, key);
    if (!needed && (x == NULL || json_is_null(x))) {
        *out = otherwise;
        return 0;
    }
    if (!json_is_integer(x) || json_integer_value(x) < 1 || json_integer_value(x) > INT_MAX)
        return err_set(e, ERR_FORMAT, "\"%s\" %s; a whole number from 1 is needed", key,
                       x == NULL ? "is missing" : "is something else");
    *out = (int)json_integer_value(x);
    return 0;
}

static int get_num(const json_t *v, const char *key, double otherwise, float *out, struct err *e)
{
    const json_t *x = json_object_get(v, key);
    double d = json_is_number(x) ? json_number_value(x) : otherwise;
    if ((x != NULL && !json_is_null(x) && !json_is_number(x)) || !(d > 0) || !isfinite((float)d))
        return err_set(e, ERR_FORMAT, "\"%s\" is no number above 0", key);
    *out = (float)d;
    return 0;
}

static int get_arch(struct model_config *c, const json_t *v, struct err *e)
{
    const char *name = json_string_value(json_array_get(json_object_get(v, "architectures"), 0));
    for (size_t i = 0; name != NULL && i < sizeof architecture / sizeof architecture[0]; i++)
        if (strcmp(name, architecture[i].hf) == 0) {
            snprintf(c->arch, sizeof c->arch, "%s", architecture[i].arch);
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED,
                   "architecture \"%s\" is not known; known are LlamaForCausalLM, "
                   "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
                   name != NULL ? name : "?");
}

/* What would change the result and is not built: better an error than wrong text. */
static int check_extras(const json_t *v, struct err *e)
{
    static const char *const flag[] = { "attention_bias", "mlp_bias", "use_sliding_window" };
    const char *act = json_string_value(json_object_get(v, "hidden_act"));
    if (act != NULL && strcmp(act, "silu") != 0)
        return err_set(e, ERR_UNSUPPORTED, "\"hidden_act\" is \"%s\"; only silu is supported", act);
    for (int i = 0; i < 3; i++)
        if (json_is_true(json_object_get(v, flag[i])))
            return err_set(e, ERR_UNSUPPORTED, "\"%s\" is true, which is not supported", flag[i]);
    return 0;
}

static int get_scaling(struct model_config *c, const json_t *r, struct err *e)
{
    const json_t *type = json_object_get(r, "rope_type");
    const char *word = json_string_value(type != NULL ? type : json_object_get(r, "type"));
    if (word == NULL || strcmp(word, "default") == 0)
        return 0;
    TRY(get_num(r, "factor", 1, &c->rope_factor, e));
    if (strcmp(word, "linear") == 0) {
        c->rope_scaling = ROPE_LINEAR;
        return 0;
    }
    if (strcmp(word, "llama3") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "rope scaling \"%s\" is not supported; linear and llama3 are", word);
    c->rope_scaling = ROPE_LLAMA3;
    TRY(get_num(r, "low_freq_factor", 1, &c->rope_low_freq, e));
    TRY(get_num(r, "high_freq_factor", 4, &c->rope_high_freq, e));
    if (!(c->rope_high_freq > c->rope_low_freq))
        return err_set(e, ERR_FORMAT, "\"high_freq_factor\" must be above \"low_freq_factor\"");
    return get_int(r, "original_max_position_embeddings", false, 8192, &c->rope_ctx, e);
}

/* transformers 5 keeps everything in rope_parameters, earlier versions in rope_theta and rope_scaling. */
static int get_rope(struct model_config *c, const json_t *v, struct err *e)
{
    const json_t *all = json_object_get(v, "rope_parameters");
    const json_t *r = json_is_object(all) ? all : json_object_get(v, "rope_scaling");
    const json_t *theta = json_object_get(all, "rope_theta") != NULL ? all : v;
    float part = 1;
    c->rope_half_split = true;
    c->rope_factor = c->rope_low_freq = c->rope_high_freq = 1;
    TRY(get_num(theta, "rope_theta", 10000, &c->rope_theta, e));
    TRY(get_num(v, "partial_rotary_factor", 1, &part, e));
    c->rope_dim = (int)((float)c->head_dim * (part < 1 ? part : 1));
    return r != NULL ? get_scaling(c, r, e) : 0;
}

/* As transformers reads it: null is none, and where there is no key its own default stands. Folders that were pressed before
 * null was written have no window. */
static int get_window(struct model_config *c, const json_t *v, struct err *e)
{
    const json_t *q = json_object_get(v, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    bool ours = method != NULL && strcmp(method, "wring") == 0;
    bool missing = json_object_get(v, "sliding_window") == NULL;
    return get_int(v, "sliding_window", false, missing && !ours ? 4096 : 0, &c->window, e);
}

int hf_config(struct model_config *c, const json_t *v, struct err *e)
{
    TRY(get_arch(c, v, e));
    TRY(check_extras(v, e));
    TRY(get_int(v, "num_hidden_layers", true, 0, &c->n_layers, e));
    TRY(get_int(v, "hidden_size", true, 0, &c->dim, e));
    TRY(get_int(v, "num_attention_heads", true, 0, &c->n_heads, e));
    TRY(get_int(v, "num_key_value_heads", false, c->n_heads, &c->n_kv_heads, e));
    TRY(get_int(v, "head_dim", false, c->dim / c->n_heads, &c->head_dim, e));
    TRY(get_int(v, "intermediate_size", true, 0, &c->ffn, e));
    TRY(get_int(v, "vocab_size", true, 0, &c->vocab, e));
    TRY(get_int(v, "max_position_embeddings", true, 0, &c->ctx_train, e));
    TRY(get_num(v, "rms_norm_eps", 1e-6, &c->norm_eps, e));
    if (strcmp(c->arch, "mistral") == 0)
        TRY(get_window(c, v, e));
    c->tied = json_is_true(json_object_get(v, "tie_word_embeddings"));
    return get_rope(c, v, e);
}
