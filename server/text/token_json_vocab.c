/* The vocabulary of tokenizer.json: "model" and "added_tokens".
 *
 * Tokens of model.vocab are normal, or bytes where the model falls back to them. Added tokens are taken out of the text
 * before anything else: special ones are control tokens, the others are user-defined. Ids that nothing names are gaps.
 */
#include <string.h>

#include "server/text/token_json.h"

enum { MAX_TOKENS = 1 << 22, MAX_GAPS = 1 << 16 };

/* ---- what kind of model ------------------------------------------------------------------------------------------ */

static bool is_set(const json_t *model, const char *key)
{
    const json_t *v = json_object_get(model, key);
    return (json_is_string(v) && json_string_length(v) > 0) || json_number_value(v) > 0;
}

int json_check_model(const json_t *tokenizer, struct err *e)
{
    static const char *const unused[] = { "dropout", "continuing_subword_prefix",
                                          "end_of_word_suffix" };
    const json_t *model = json_object_get(tokenizer, "model");
    const char *type = json_text(model, "type");
    if (!json_is_object(model))
        return err_set(e, ERR_FORMAT, "tokenizer.json: \"model\" is missing");
    if (type != NULL && strcmp(type, "BPE") != 0)
        return err_set(e, ERR_UNSUPPORTED, "tokenizer.json: model \"%.40s\"; only BPE is supported",
                       type);
    for (int i = 0; i < 3; i++)
        if (is_set(model, unused[i]))
            return err_set(e, ERR_UNSUPPORTED, "tokenizer.json: model.%s is not supported",
                           unused[i]);
    return 0;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

/* An id, or -1. */
static int32_t id_of(const json_t *v)
{
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id < MAX_TOKENS ? (int32_t)id : -1;
}

static int grow_to(const json_t *id, const char *text, int *n, struct err *e)
{
    int32_t i = id_of(id);
    if (i < 0)
        return err_set(e, ERR_FORMAT, "tokenizer.json: token \"%.60s\" has no id from 0 to %d",
                       text, MAX_TOKENS - 1);
    *n = i >= *n ? i + 1 : *n;
    return 0;
}

static int count(const json_t *vocab, const json_t *added, int *n, struct err *e)
{
    const char *text;
    json_t *x;
    size_t i;
    *n = 0;
    json_object_foreach((json_t *)vocab, text, x)
    {
        TRY(grow_to(x, text, n, e));
    }
    json_array_foreach(added, i, x)
    {
        text = json_text(x, "content");
        if (text == NULL || text[0] == 0)
            return err_set(e, ERR_FORMAT, "tokenizer.json: added token %zu has no content", i);
        TRY(grow_to(json_object_get(x, "id"), text, n, e));
    }
    size_t named = json_object_size(vocab) + json_array_size(added);
    if ((size_t)*n > named + MAX_GAPS)
        return err_set(e, ERR_FORMAT, "tokenizer.json: %zu tokens, but ids up to %d", named,
                       *n - 1);
    return 0;
}

static int put(struct json_vocab *j, int32_t id, const char *text, int kind, struct err *e)
{
    if (j->text[id] != NULL && strcmp(j->text[id], text) != 0)
        return err_set(e, ERR_FORMAT, "tokenizer.json: token %d is both \"%.60s\" and \"%.60s\"",
                       (int)id, j->text[id], text);
    j->text[id] = text;
    j->len[id] = strlen(text);
    j->kind[id] = (uint8_t)kind;
    return 0;
}

static int put_vocab(struct json_vocab *j, const json_t *vocab, struct err *e)
{
    const char *text;
    json_t *x;
    json_object_foreach((json_t *)vocab, text, x)
    {
        bool byte = j->v.model == TOK_SPM && tok_byte_name(text, strlen(text)) >= 0;
        TRY(put(j, id_of(x), text, byte ? TOK_BYTE : TOK_NORMAL, e));
    }
    return 0;
}

static int put_added(struct json_vocab *j, const json_t *vocab, const json_t *added, struct err *e)
{
    static const char *const flag[] = { "lstrip", "rstrip", "single_word" };
    json_t *x;
    size_t i;
    json_array_foreach(added, i, x)
    {
        const char *text = json_text(x, "content");
        int32_t id = id_of(json_object_get(x, "id"));
        const json_t *other = json_object_get(vocab, text);
        for (int k = 0; k < 3; k++)
            if (json_flag(x, flag[k], false))
                return err_set(e, ERR_UNSUPPORTED,
                               "tokenizer.json: added token \"%.60s\" has \"%s\", which is not "
                               "supported",
                               text, flag[k]);
        if (other != NULL && id_of(other) != id)
            return err_set(e, ERR_FORMAT,
                           "tokenizer.json: \"%.60s\" is token %d in the vocabulary and %d among "
                           "the added ones",
                           text, (int)id_of(other), (int)id);
        TRY(put(j, id, text, json_flag(x, "special", false) ? TOK_CONTROL : TOK_USER_DEFINED, e));
    }
    return 0;
}

static void fill_gaps(struct json_vocab *j)
{
    for (int i = 0; i < j->v.n; i++)
        if (j->text[i] == NULL) {
            j->text[i] = "";
            j->kind[i] = TOK_UNUSED;
        }
}

static int read_tokens(struct json_vocab *j, const json_t *vocab, const json_t *added,
                       struct err *e)
{
    int n;
    TRY(count(vocab, added, &n, e));
    j->text = mem_zalloc((size_t)n, sizeof *j->text);
    j->len = mem_zalloc((size_t)n, sizeof *j->len);
    j->kind = mem_zalloc((size_t)n, sizeof *j->kind);
    if (j->text == NULL || j->len == NULL || j->kind == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a vocabulary of %d tokens", n);
    j->v.n = n;
    j->v.text = j->text;
    j->v.len = j->len;
    j->v.kind = j->kind;
    TRY(put_vocab(j, vocab, e));
    TRY(put_added(j, vocab, added, e));
    fill_gaps(j);
    return 0;
}

/* ---- merges ------------------------------------------------------------------------------------------------------ */

/* A merge, "left right" or ["left", "right"], as the former. ERR_FORMAT: neither. */
static int merge_text(const char **out, struct arena *a, const json_t *merge)
{
    const json_t *l = json_array_get(merge, 0);
    const json_t *r = json_array_get(merge, 1);
    *out = json_string_value(merge);
    if (*out != NULL)
        return 0;
    if (json_array_size(merge) != 2 || !json_is_string(l) || !json_is_string(r))
        return ERR_FORMAT;
    size_t n = json_string_length(l);
    char *s = arena_alloc(a, n + json_string_length(r) + 2);
    if (s == NULL)
        return ERR_NOMEM;
    memcpy(s, json_string_value(l), n);
    s[n] = ' ';
    memcpy(s + n + 1, json_string_value(r), json_string_length(r));
    *out = s;
    return 0;
}

static int read_merges(struct json_vocab *j, const json_t *merges, struct err *e)
{
    size_t n = json_array_size(merges);
    json_t *x;
    size_t i;
    if (!json_is_array(merges) || n == 0 || n > MAX_TOKENS)
        return err_set(e, ERR_FORMAT, "tokenizer.json: model.merges is no list of 1 to %d merges",
                       MAX_TOKENS);
    j->merge = mem_zalloc(n, sizeof *j->merge);
    j->merge_len = mem_zalloc(n, sizeof *j->merge_len);
    if (j->merge == NULL || j->merge_len == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %zu merges", n);
    json_array_foreach(merges, i, x)
    {
        int rc = merge_text(&j->merge[i], &j->joined, x);
        if (rc < 0)
            return err_set(e, rc,
                           rc == ERR_NOMEM ? "no memory for merge %zu"
                                           : "tokenizer.json: merge %zu is no pair of pieces",
                           i);
        j->merge_len[i] = strlen(j->merge[i]);
    }
    j->v.n_merges = (int)n;
    j->v.merge = j->merge;
    j->v.merge_len = j->merge_len;
    return 0;
}

/* Only sentencepiece's models know an unknown token: in a byte-level one, what has no token is left out. As an added token
 * it is found by its name in the text, like any other. */
static int read_unknown(struct json_vocab *j, const json_t *model, const json_t *vocab,
                        struct err *e)
{
    const char *name = json_text(model, "unk_token");
    if (j->v.model != TOK_SPM || name == NULL)
        return 0;
    j->v.unk = id_of(json_object_get(vocab, name));
    if (j->v.unk < 0)
        return err_set(e, ERR_FORMAT,
                       "tokenizer.json: unk_token \"%.60s\" is not in the vocabulary", name);
    if (j->kind[j->v.unk] == TOK_NORMAL)
        j->kind[j->v.unk] = TOK_UNKNOWN;
    return 0;
}

int json_read_vocab(struct json_vocab *j, const json_t *tokenizer, struct err *e)
{
    const json_t *model = json_object_get(tokenizer, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    if (j->v.model == TOK_SPM && !json_flag(model, "byte_fallback", false))
        return err_set(e, ERR_UNSUPPORTED,
                       "tokenizer.json: neither byte-level nor with byte_fallback: some text "
                       "would have no tokens");
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return err_set(e, ERR_FORMAT, "tokenizer.json: model.vocab is missing or empty");
    TRY(read_tokens(j, vocab, json_object_get(tokenizer, "added_tokens"), e));
    TRY(read_merges(j, json_object_get(model, "merges"), e));
    TRY(read_unknown(j, model, vocab, e));
    j->v.whole_words = json_flag(model, "ignore_merges", false) ? 1 : -1;
    return 0;
}
