/* Pre-tokenisers: the regular expressions that cut text into words before any merging.
 *
 * A pre-tokeniser is a list of stages; each stage cuts every piece of the one before. Where a pattern does not match, and
 * where bytes are not UTF-8, the text between matches is a piece of its own.
 * Sources: GPT-2's encoder.py, Llama 3's tokenizer.py, Qwen2's and SmolLM2's tokenizer.json.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

/* Unicode White_Space, spelt out: PCRE2's \s also has U+180E, which the others' \s has not. */
#define SPACE                                                                                      \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"

/* The patterns as they are published, and as tokenizer.json has them. */
#define CL100K(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const char pretoken_gpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char pretoken_digits[] = "\\p{N}";
#define GPT2   pretoken_gpt2
#define DIGITS pretoken_digits

enum { MAX_STAGES = 2, MAX_PATTERN = 1024 };

static const struct {
    const char *name;
    const char *stage[MAX_STAGES];
    bool whole_words, nfc;
} known[] = {
    { "gpt-2", { GPT2 }, false, false },
    { "gpt2", { GPT2 }, false, false },
    { "default", { GPT2 }, false, false },
    { "mpt", { GPT2 }, false, true },
    { "olmo", { GPT2 }, false, true },
    { "phi-2", { GPT2 }, false, false },
    { "smollm", { DIGITS, GPT2 }, false, false },
    { "starcoder", { DIGITS, GPT2 }, false, false },
    { "refact", { DIGITS, GPT2 }, false, false },
    { "llama-bpe", { CL100K("\\p{N}{1,3}") }, true, false },
    { "llama3", { CL100K("\\p{N}{1,3}") }, true, false },
    { "llama-v3", { CL100K("\\p{N}{1,3}") }, true, false },
    { "qwen2", { CL100K("\\p{N}") }, false, true },
    { "deepseek-r1-qwen", { CL100K("\\p{N}") }, false, true },
};
enum { N_KNOWN = sizeof known / sizeof known[0] };

struct pretoken {
    pcre2_code *code[MAX_STAGES];
    const char *stage[MAX_STAGES]; /* as published */
    int n;
};

/* The pattern with \s and \S written out; \s also inside brackets. */
static int spell(const char *pattern, struct buf *out)
{
    bool inside = false;
    for (const char *p = pattern; *p != 0; p++) {
        inside = *p == '[' || (inside && *p != ']');
        if (*p != '\\')
            (void)buf_addc(out, *p);
        else if (*++p == 's')
            (void)buf_adds(out, inside ? SPACE : "[" SPACE "]");
        else if (*p == 'S')
            (void)buf_adds(out, "[^" SPACE "]");
        else
            (void)buf_addf(out, "\\%c", *p);
    }
    return out->bad;
}

static int compile(struct pretoken *p, const char *pattern, struct err *e)
{
    int number = 0;
    PCRE2_SIZE at;
    struct buf spelt;
    buf_init(&spelt, MAX_PATTERN);
    pcre2_code *c = NULL;
    if (spell(pattern, &spelt) == 0)
        c = pcre2_compile((PCRE2_SPTR)buf_str(&spelt), PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &number, &at, NULL);
    buf_free(&spelt);
    if (c == NULL)
        return err_set(e, ERR_NOMEM,
                       "the pre-tokeniser's pattern does not compile (PCRE2 error %d)", number);
    /* Without JIT (no executable memory) matching is slower, not different. */
    (void)pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
    p->stage[p->n] = pattern;
    p->code[p->n++] = c;
    return 0;
}

static void list_names(char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < N_KNOWN && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? ", " : "", known[i].name);
}

static int unknown_name(const char *name, struct err *e)
{
    char list[256];
    list_names(list, sizeof list);
    return err_set(e, ERR_UNSUPPORTED, "pre-tokeniser \"%s\" is not known; known are %s", name,
                   list);
}

int pretoken_open(struct pretoken **out, const char *name, bool *whole_words, bool *nfc,
                  struct err *e)
{
    int i = 0;
    while (i < N_KNOWN && strcmp(known[i].name, name) != 0)
        i++;
    if (i == N_KNOWN)
        return unknown_name(name, e);
    struct pretoken *p = mem_zalloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the pre-tokeniser");
    for (int k = 0; k < MAX_STAGES && known[i].stage[k] != NULL; k++)
        if (compile(p, known[i].stage[k], e) < 0) {
            pretoken_close(p);
            return ERR_NOMEM;
        }
    *whole_words = known[i].whole_words;
    *nfc = known[i].nfc;
    *out = p;
    return 0;
}

const char *pretoken_stage(const struct pretoken *p, int i)
{
    return i < p->n ? p->stage[i] : NULL;
}

static bool has_stages(int known_at, const char *const *stage, int n)
{
    const char *const *mine = known[known_at].stage;
    for (int i = 0; i < n; i++)
        if (i == MAX_STAGES || mine[i] == NULL || strcmp(mine[i], stage[i]) != 0)
            return false;
    return n == MAX_STAGES || mine[n] == NULL;
}

int pretoken_find(const char **name, const char *const *stage, int n, struct err *e)
{
    char list[256];
    for (int i = 0; i < N_KNOWN; i++)
        if (n > 0 && has_stages(i, stage, n)) {
            *name = known[i].name;
            return 0;
        }
    list_names(list, sizeof list);
    return err_set(e, ERR_UNSUPPORTED,
                   "no known pre-tokeniser cuts text by \"%.160s\"%s%.60s%s; known are %s",
                   n > 0 ? stage[0] : "", n > 1 ? " and \"" : "", n > 1 ? stage[1] : "",
                   n > 1 ? "\"" : "", list);
}

void pretoken_close(struct pretoken *p)
{
    if (p == NULL)
        return;
    for (int i = 0; i < p->n; i++)
        pcre2_code_free(p->code[i]);
    mem_free(p);
}

struct run {
    const struct pretoken *p;
    pcre2_match_data *match[MAX_STAGES];
    pretoken_fn *fn;
    void *arg;
};

static int run_stage(const struct run *r, int stage, const char *s, size_t n);

static int next_stage(const struct run *r, int stage, const char *s, size_t n)
{
    if (n == 0)
        return 0;
    return stage + 1 < r->p->n ? run_stage(r, stage + 1, s, n) : r->fn(r->arg, s, n);
}

/* At most MAX_STAGES deep. */
static int run_stage(const struct run *r, int stage, const char *s, size_t n)
{
    size_t at = 0;
    while (at < n) {
        /* The subject starts at the piece, so that look-ahead ends with it. */
        int rc = pcre2_match(r->p->code[stage], (PCRE2_SPTR)s, n, at, 0, r->match[stage], NULL);
        if (rc < 0)
            return next_stage(r, stage, s + at,
                              n - at); /* no match left, or a limit: the rest is one word */
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(r->match[stage]);
        TRY(next_stage(r, stage, s + at, v[0] - at));
        TRY(next_stage(r, stage, s + v[0], v[1] - v[0]));
        at = v[1] > at ? v[1] : at + 1;
    }
    return 0;
}

int pretoken_run(const struct pretoken *p, const char *s, size_t n, pretoken_fn *fn, void *arg)
{
    struct run r = { .p = p, .fn = fn, .arg = arg };
    int rc = 0;
    for (int i = 0; i < p->n; i++) {
        r.match[i] = pcre2_match_data_create(1, NULL);
        if (r.match[i] == NULL)
            rc = ERR_NOMEM;
    }
    if (rc == 0 && n > 0)
        rc = run_stage(&r, 0, s, n);
    for (int i = 0; i < p->n; i++)
        pcre2_match_data_free(r.match[i]);
    return rc;
}
