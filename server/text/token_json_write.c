/* A tokenizer as tokenizer.json and the files beside it, in the form that `tokenizers` itself writes.
 *
 * Every token stands in model.vocab, so that its id does not depend on the order in which tokens are added; those that are
 * found by their names stand among added_tokens too.
 */
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "server/text/token_json.h"

enum { MAX_TEXT = 1 << 20 };

/* ---- texts ------------------------------------------------------------------------------------------------------- */

static int add_spm_text(const char *s, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] == ' ')
            (void)buf_adds(out, SPM_SPACE);
        else
            (void)buf_addc(out, s[i]);
    return out->bad;
}

int json_token_text(const struct tokenizer *t, int32_t id, struct buf *out)
{
    int n;
    const char *s = tok_piece(t, id, &n);
    if (t->kind[id] == TOK_BYTE)
        return buf_addf(out, "<0x%02X>", (unsigned char)s[0]);
    if (t->kind[id] != TOK_NORMAL)
        return buf_add(out, s, (size_t)n);
    return t->model == TOK_BPE ? alphabet_add(s, (size_t)n, out) : add_spm_text(s, (size_t)n, out);
}

/* The name by which other parts of the files speak of a token; null where there is none. */
static json_t *name_of(const struct tokenizer *t, int32_t id)
{
    struct buf text;
    if (id < 0 || t->kind[id] == TOK_UNUSED)
        return json_null();
    buf_init(&text, MAX_TEXT);
    json_t *name =
        json_token_text(t, id, &text) == 0 ? json_stringn(buf_str(&text), text.len) : NULL;
    buf_free(&text);
    return name;
}

/* JSON has UTF-8 only, and NUL ends a key. */
static bool can_stand(const char *s, size_t n)
{
    utf8proc_int32_t c;
    for (size_t i = 0; i < n;) {
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (k < 1 || c == 0)
            return false;
        i += (size_t)k;
    }
    return true;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

/* Found by its name in the text. */
static bool is_added(const struct tokenizer *t, int32_t id)
{
    return t->kind[id] == TOK_CONTROL || t->kind[id] == TOK_USER_DEFINED;
}

static int put_token(const struct tokenizer *t, int32_t id, struct buf *text, json_t *vocab,
                     struct err *e)
{
    buf_clear(text);
    TRY(json_token_text(t, id, text));
    const char *key = buf_str(text);
    if (!can_stand(key, text->len))
        return err_set(e, ERR_UNSUPPORTED,
                       "token %d is not UTF-8 text: JSON has no way to write it", (int)id);
    /* Of two tokens with one text the first stands; but an added one is found by its name, so that it goes before. */
    const json_t *other = json_object_get(vocab, key);
    if (text->len == 0 ||
        (other != NULL && (!is_added(t, id) || is_added(t, (int32_t)json_integer_value(other)))))
        return 0;
    return json_object_set_new(vocab, key, json_integer(id)) == 0 ? 0 : ERR_NOMEM;
}

/* The token put around every text must be one that is written. */
static int check_ends(const struct tokenizer *t, struct err *e)
{
    if ((t->add_bos && t->kind[t->bos] == TOK_UNUSED) ||
        (t->add_eos && t->kind[t->eos] == TOK_UNUSED))
        return err_set(e, ERR_UNSUPPORTED, "bos (token %d) or eos (%d) is an unused token",
                       (int)t->bos, (int)t->eos);
    return 0;
}

static int put_vocab(const struct tokenizer *t, json_t *vocab, struct err *e)
{
    struct buf text;
    int rc = check_ends(t, e);
    buf_init(&text, MAX_TEXT);
    for (int32_t id = 0; rc == 0 && id < t->n; id++)
        if (t->kind[id] != TOK_UNUSED)
            rc = put_token(t, id, &text, vocab, e);
    buf_free(&text);
    return rc;
}

static int put_added(const struct tokenizer *t, const json_t *vocab, json_t *added)
{
    for (int32_t id = 0; id < t->n; id++) {
        const char *name = tok_text(t, id);
        const json_t *at = json_object_get(vocab, name);
        if (!is_added(t, id) || at == NULL || json_integer_value(at) != id)
            continue;
        json_t *x = json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (int)id, "content", name,
                              "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                              "special", t->kind[id] == TOK_CONTROL);
        if (json_array_append_new(added, x) < 0)
            return ERR_NOMEM;
    }
    return 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static json_t *replace(const char *from, const char *to)
{
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                     to);
}

static json_t *byte_level(bool own_pattern)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", own_pattern);
}

static json_t *sequence(const char *key, json_t *steps)
{
    return json_pack("{s:s, s:o}", "type", "Sequence", key, steps);
}

static bool has_metaspace(const struct tokenizer *t)
{
    return t->prefix_first_only || t->prefix_if_none;
}

static json_t *normalizer(const struct tokenizer *t)
{
    if (t->model == TOK_BPE)
        return t->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    if (has_metaspace(t))
        return json_null();
    if (!t->add_space_prefix)
        return replace(" ", SPM_SPACE);
    return sequence("normalizers", json_pack("[{s:s, s:s}, o]", "type", "Prepend", "prepend",
                                             SPM_SPACE, replace(" ", SPM_SPACE)));
}

static json_t *metaspace(const struct tokenizer *t)
{
    const char *scheme = !t->add_space_prefix ? "never" : t->prefix_first_only ? "first" : "always";
    return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", SPM_SPACE,
                     "prepend_scheme", scheme, "split", 0);
}

static json_t *pre_tokenizer(const struct tokenizer *t)
{
    if (t->model == TOK_SPM)
        return has_metaspace(t) ? metaspace(t) : json_null();
    json_t *steps = json_array();
    bool own_pattern = false;
    const char *pattern;
    int rc = 0;
    for (int i = 0; (pattern = pretoken_stage(t->pre, i)) != NULL; i++) {
        own_pattern = pattern == pretoken_gpt2 && pretoken_stage(t->pre, i + 1) == NULL;
        if (pattern == pretoken_digits)
            rc |= json_array_append_new(
                steps, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
        else if (!own_pattern)
            rc |= json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type",
                                                         "Split", "pattern", "Regex", pattern,
                                                         "behavior", "Isolated", "invert", 0));
    }
    rc |= json_array_append_new(steps, byte_level(own_pattern));
    if (rc != 0) {
        json_decref(steps);
        return NULL;
    }
    return sequence("pretokenizers", steps);
}

static json_t *decoder(const struct tokenizer *t)
{
    if (t->model == TOK_BPE)
        return byte_level(true);
    json_t *steps = json_pack("[o, {s:s}, {s:s}]", replace(SPM_SPACE, " "), "type", "ByteFallback",
                              "type", "Fuse");
    if (steps != NULL && t->add_space_prefix &&
        json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
                                               " ", "start", 1, "stop", 0)) < 0) {
        json_decref(steps);
        return NULL;
    }
    return sequence("decoders", steps);
}

static int add_item(json_t *items, const char *what, json_t *id, int type)
{
    return json_array_append_new(items,
                                 json_pack("{s:{s:o, s:i}}", what, "id", id, "type_id", type));
}

/* bos, the sequence called name, eos. */
static json_t *template_of(const struct tokenizer *t, const char *name, int type)
{
    json_t *items = json_array();
    int rc = 0;
    if (t->add_bos)
        rc |= add_item(items, "SpecialToken", name_of(t, t->bos), type);
    rc |= add_item(items, "Sequence", json_string(name), type);
    if (t->add_eos)
        rc |= add_item(items, "SpecialToken", name_of(t, t->eos), type);
    if (rc != 0) {
        json_decref(items);
        return NULL;
    }
    return items;
}

static int put_special(const struct tokenizer *t, int32_t id, json_t *specials)
{
    json_t *name = name_of(t, id);
    int rc = -1;
    if (json_is_string(name))
        rc = json_object_set_new(
            specials, json_string_value(name),
            json_pack("{s:O, s:[i], s:[O]}", "id", name, "ids", (int)id, "tokens", name));
    json_decref(name);
    return rc;
}

static json_t *post_processor(const struct tokenizer *t)
{
    if (!t->add_bos && !t->add_eos)
        return json_null();
    json_t *specials = json_object();
    json_t *pair = template_of(t, "A", 0);
    json_t *second = template_of(t, "B", 1);
    int rc = json_array_extend(pair, second);
    if (t->add_bos)
        rc |= put_special(t, t->bos, specials);
    if (t->add_eos)
        rc |= put_special(t, t->eos, specials);
    json_decref(second);
    if (rc != 0) {
        json_decref(specials);
        json_decref(pair);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single",
                     template_of(t, "A", 0), "pair", pair, "special_tokens", specials);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static json_t *model_of(const struct tokenizer *t, json_t *vocab)
{
    bool spm = t->model == TOK_SPM;
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:O, s:o}", "type", "BPE", "dropout",
                     "unk_token", name_of(t, spm ? t->unk : -1), "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", spm, "byte_fallback", spm, "ignore_merges",
                     t->whole_words, "vocab", vocab, "merges", json_merges(t));
}

static json_t *tokenizer_of(const struct tokenizer *t, json_t *vocab, json_t *added)
{
    return json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added, "normalizer", normalizer(t),
                     "pre_tokenizer", pre_tokenizer(t), "post_processor", post_processor(t),
                     "decoder", decoder(t), "model", model_of(t, vocab));
}

static json_t *config_of(const struct tokenizer *t)
{
    return json_pack("{s:b, s:b, s:o, s:b, s:o, s:s, s:o}", "add_bos_token", t->add_bos,
                     "add_eos_token", t->add_eos, "bos_token", name_of(t, t->bos),
                     "clean_up_tokenization_spaces", 0, "eos_token", name_of(t, t->eos),
                     "tokenizer_class", "PreTrainedTokenizerFast", "unk_token", name_of(t, t->unk));
}

static json_t *generation_of(const struct tokenizer *t)
{
    json_t *ends = json_array();
    int rc = t->eos >= 0 ? json_array_append_new(ends, json_integer(t->eos)) : 0;
    for (int32_t id = 0; id < t->n; id++)
        if (t->eog[id] && id != t->eos)
            rc |= json_array_append_new(ends, json_integer(id));
    if (rc != 0) {
        json_decref(ends);
        return NULL;
    }
    json_t *out = json_pack("{s:o}", "eos_token_id", ends);
    if (out != NULL && t->bos >= 0 &&
        json_object_set_new(out, "bos_token_id", json_integer(t->bos)) < 0) {
        json_decref(out);
        return NULL;
    }
    return out;
}

static int add_to_buf(const char *p, size_t n, void *arg)
{
    return buf_add(arg, p, n);
}

/* Takes v, which may be NULL: out of memory. */
static int dump(json_t *v, struct buf *out)
{
    int rc = v == NULL ? ERR_NOMEM : 0;
    if (rc == 0 && json_dump_callback(v, add_to_buf, out, JSON_INDENT(2)) < 0)
        rc = out->bad != 0 ? out->bad : ERR_NOMEM;
    json_decref(v);
    return rc == 0 ? buf_addc(out, '\n') : rc;
}

int tok_write_json(const struct tokenizer *t, struct tok_json *f, struct err *e)
{
    json_t *vocab = json_object();
    json_t *added = json_array();
    struct err why = { .code = 0 };
    int rc = put_vocab(t, vocab, &why);
    if (rc == 0)
        rc = put_added(t, vocab, added);
    if (rc == 0)
        rc = dump(tokenizer_of(t, vocab, added), &f->tokenizer);
    if (rc == 0)
        rc = dump(config_of(t), &f->tokenizer_config);
    if (rc == 0)
        rc = dump(generation_of(t), &f->generation_config);
    json_decref(added);
    json_decref(vocab);
    if (rc < 0 && why.code == 0)
        err_set(&why, rc,
                rc == ERR_LIMIT ? "tokenizer.json would be larger than its limit"
                                : "no memory to write tokenizer.json");
    return rc < 0 ? err_set(e, rc, "%s", why.text) : 0;
}
