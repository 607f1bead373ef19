/* What tokenizer.json does to text before merging: its normalizer and its pre_tokenizer.
 *
 * Both are one step, or a Sequence of steps. The steps of published models are few; they are recognised whole, and whatever
 * else stands there is refused by name: text that is cut in another way gives other ids without a word.
 */
#include <string.h>

#include "server/text/token_json.h"

enum { MAX_STAGES = 4 };

bool json_step_is(const json_t *step, const char *type)
{
    const char *t = json_text(step, "type");
    return t != NULL && strcmp(t, type) == 0;
}

const json_t *json_step(const json_t *stage, const char *key, size_t i)
{
    if (json_step_is(stage, "Sequence"))
        return json_array_get(json_object_get(stage, key), i);
    return i == 0 && json_is_object(stage) ? stage : NULL;
}

int json_step_unknown(const char *stage, const json_t *step, struct err *e)
{
    const char *type = json_text(step, "type");
    return err_set(e, ERR_UNSUPPORTED, "tokenizer.json: %s \"%.40s\" is not known in this form",
                   stage, type != NULL ? type : "without type");
}

static bool text_is(const json_t *v, const char *key, const char *text)
{
    const char *s = json_text(v, key);
    return s != NULL && strcmp(s, text) == 0;
}

/* ---- pre_tokenizer ----------------------------------------------------------------------------------------------- */

struct cutting {
    const char *stage[MAX_STAGES]; /* patterns */
    int n;
    bool bytes;  /* text becomes bytes in GPT-2's alphabet */
    bool spaces; /* spaces become U+2581 */
};

static int add_stage(struct cutting *c, const char *pattern, struct err *e)
{
    if (c->n == MAX_STAGES)
        return err_set(e, ERR_UNSUPPORTED, "tokenizer.json: a pre_tokenizer of more than %d stages",
                       MAX_STAGES);
    c->stage[c->n++] = pattern;
    return 0;
}

/* The matches are words, and so is what lies between; or that is dropped, where the pattern leaves nothing between. */
static int read_split(struct cutting *c, const json_t *step, struct err *e)
{
    const char *regex = json_text(json_object_get(step, "pattern"), "Regex");
    bool isolated = text_is(step, "behavior", "Isolated") && !json_flag(step, "invert", false);
    bool kept = text_is(step, "behavior", "Removed") && json_flag(step, "invert", false);
    if (regex == NULL || !(isolated || kept))
        return json_step_unknown("pre_tokenizer", step, e);
    return add_stage(c, regex, e);
}

static int read_byte_level(struct cutting *c, const json_t *step, struct err *e)
{
    if (json_flag(step, "add_prefix_space", true))
        return err_set(e, ERR_UNSUPPORTED,
                       "tokenizer.json: pre_tokenizer \"ByteLevel\" adds a space in front of text, "
                       "which is not supported");
    c->bytes = true;
    return json_flag(step, "use_regex", true) ? add_stage(c, pretoken_gpt2, e) : 0;
}

/* The newer way to write what the normalizer of read_normalizer does. */
static int read_metaspace(struct cutting *c, struct tok_vocab *v, const json_t *step, struct err *e)
{
    const char *scheme = json_text(step, "prepend_scheme");
    if (scheme == NULL)
        scheme = json_flag(step, "add_prefix_space", true) ? "always" : "never";
    if (!text_is(step, "replacement", SPM_SPACE) || json_flag(step, "split", true))
        return json_step_unknown("pre_tokenizer", step, e);
    c->spaces = true;
    v->prefix_if_none = true;
    v->add_space_prefix = strcmp(scheme, "never") != 0;
    v->prefix_first_only = strcmp(scheme, "first") == 0;
    return 0;
}

static int read_pre_tokenizer(struct cutting *c, struct tok_vocab *v, const json_t *stage,
                              struct err *e)
{
    const json_t *step;
    for (size_t i = 0; (step = json_step(stage, "pretokenizers", i)) != NULL; i++) {
        if (c->bytes || c->spaces)
            return json_step_unknown("after the last step, pre_tokenizer", step, e);
        if (json_step_is(step, "Split"))
            TRY(read_split(c, step, e));
        else if (json_step_is(step, "Digits") && json_flag(step, "individual_digits", false))
            TRY(add_stage(c, pretoken_digits, e));
        else if (json_step_is(step, "ByteLevel"))
            TRY(read_byte_level(c, step, e));
        else if (json_step_is(step, "Metaspace"))
            TRY(read_metaspace(c, v, step, e));
        else
            return json_step_unknown("pre_tokenizer", step, e);
    }
    return 0;
}

/* ---- normalizer -------------------------------------------------------------------------------------------------- */

static bool replaces_spaces(const json_t *step)
{
    return json_step_is(step, "Replace") &&
           text_is(json_object_get(step, "pattern"), "String", " ") &&
           text_is(step, "content", SPM_SPACE);
}

static int read_normalizer(struct cutting *c, struct tok_vocab *v, const json_t *stage,
                           struct err *e)
{
    const json_t *step;
    for (size_t i = 0; (step = json_step(stage, "normalizers", i)) != NULL; i++) {
        if (c->bytes && json_step_is(step, "NFC"))
            v->nfc = 1;
        else if (!c->bytes && !c->spaces && json_step_is(step, "Prepend") &&
                 text_is(step, "prepend", SPM_SPACE))
            v->add_space_prefix = true;
        else if (!c->bytes && !c->spaces && replaces_spaces(step))
            c->spaces = true;
        else
            return json_step_unknown("normalizer", step, e);
    }
    return 0;
}

int json_read_steps(struct tok_vocab *v, const json_t *tokenizer, struct err *e)
{
    struct cutting c = { .n = 0 };
    v->nfc = -1;
    TRY(read_pre_tokenizer(&c, v, json_object_get(tokenizer, "pre_tokenizer"), e));
    TRY(read_normalizer(&c, v, json_object_get(tokenizer, "normalizer"), e));
    v->model = c.bytes ? TOK_BPE : TOK_SPM;
    if (c.bytes)
        return pretoken_find(&v->pre, c.stage, c.n, e);
    if (c.n > 0 || !c.spaces)
        return err_set(e, ERR_UNSUPPORTED,
                       "tokenizer.json: neither byte-level (pre_tokenizer \"ByteLevel\") nor "
                       "sentencepiece-like (spaces as U+2581, text not cut)");
    return 0;
}
