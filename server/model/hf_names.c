/* transformers' names of the llama family and ours, which are GGUF's: "model.layers.N.self_attn.q_proj.weight" and
 * "blk.N.attn_q.weight". What stands behind a module (weight, bias, the name of a part) is the same in both. */
#include <stdio.h>
#include <string.h>

#include "server/model/hf.h"

struct pair {
    const char *hf, *canonical;
};

static const struct pair of_model[] = {
    { "model.embed_tokens.", "token_embd." },
    { "model.norm.", "output_norm." },
    { "lm_head.", "output." },
};

/* What follows "model.layers.N." and "blk.N.". */
static const struct pair of_layer[] = {
    { "input_layernorm.", "attn_norm." },    { "self_attn.q_proj.", "attn_q." },
    { "self_attn.k_proj.", "attn_k." },      { "self_attn.v_proj.", "attn_v." },
    { "self_attn.o_proj.", "attn_output." }, { "self_attn.q_norm.", "attn_q_norm." },
    { "self_attn.k_norm.", "attn_k_norm." }, { "post_attention_layernorm.", "ffn_norm." },
    { "mlp.gate_proj.", "ffn_gate." },       { "mlp.up_proj.", "ffn_up." },
    { "mlp.down_proj.", "ffn_down." },
};

enum {
    N_MODEL = sizeof of_model / sizeof of_model[0],
    N_LAYER = sizeof of_layer / sizeof of_layer[0]
};

static bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

/* The layer that "PREFIX.N." at the start of name speaks of, and what stands behind it; -1: none. */
static int layer_of(const char *name, const char *prefix, const char **rest)
{
    int layer = 0;
    if (!begins(name, prefix))
        return -1;
    const char *p = name + strlen(prefix);
    if (*p < '0' || *p > '9')
        return -1;
    for (; *p >= '0' && *p <= '9'; p++) {
        layer = 10 * layer + (*p - '0');
        if (layer > 9999)
            return -1;
    }
    if (*p != '.')
        return -1;
    *rest = p + 1;
    return layer;
}

const char *hf_canonical(struct arena *a, const char *name)
{
    char out[HF_NAME];
    const char *rest = name;
    int n = snprintf(out, sizeof out, "%s", name);
    int layer = layer_of(name, "model.layers.", &rest);
    const struct pair *p = layer >= 0 ? of_layer : of_model;
    for (int i = layer >= 0 ? N_LAYER : N_MODEL; i > 0; i--, p++) {
        if (!begins(rest, p->hf))
            continue;
        rest += strlen(p->hf);
        n = layer >= 0 ? snprintf(out, sizeof out, "blk.%d.%s%s", layer, p->canonical, rest)
                       : snprintf(out, sizeof out, "%s%s", p->canonical, rest);
        break;
    }
    return n < 0 || n >= HF_NAME ? arena_strndup(a, name, strlen(name))
                                 : arena_strndup(a, out, (size_t)n);
}

int hf_name(char out[HF_NAME], const char *canonical, struct err *e)
{
    const char *rest = canonical;
    int n = snprintf(out, HF_NAME, "%s", canonical);
    int layer = layer_of(canonical, "blk.", &rest);
    const struct pair *p = layer >= 0 ? of_layer : of_model;
    for (int i = layer >= 0 ? N_LAYER : N_MODEL; i > 0; i--, p++) {
        if (!begins(rest, p->canonical))
            continue;
        rest += strlen(p->canonical);
        n = layer >= 0 ? snprintf(out, HF_NAME, "model.layers.%d.%s%s", layer, p->hf, rest)
                       : snprintf(out, HF_NAME, "%s%s", p->hf, rest);
        break;
    }
    return n < 0 || n >= HF_NAME ? err_set(e, ERR_LIMIT, "%s: the name is too long", canonical) : 0;
}
