/* The tables of a tokenizer, and the walk over special tokens. */
#include "server/text/token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

enum { MAX_TOKENS = 1 << 22 };

/* ---- building ---------------------------------------------------------------------------------------------------- */

static int kind_of(const struct tok_vocab *v, int id)
{
    return v->kind != NULL ? v->kind[id] : TOK_NORMAL;
}

static bool is_text(int kind)
{
    return kind == TOK_NORMAL || kind == TOK_USER_DEFINED;
}

int tok_byte_name(const char *s, size_t n)
{
    unsigned b;
    return n == 6 && sscanf(s, "<0x%2x>", &b) == 1 && s[5] == '>' ? (int)b : -1;
}

/* U+2581 to spaces, into out. */
static size_t with_spaces(const char *s, size_t n, char *out)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (n - i >= 3 && memcmp(s + i, "\xE2\x96\x81", 3) == 0) {
            out[at++] = ' ';
            i += 2;
        } else {
            out[at++] = s[i];
        }
    }
    return at;
}

/* A normal piece as the bytes it stands for; false when it is not written as they are in its kind of vocabulary. */
static bool to_bytes(enum tok_model model, const int16_t byte_of[ALPHABET], const char *s, size_t n,
                     char *out, size_t *len)
{
    if (model == TOK_BPE)
        return alphabet_read(byte_of, s, n, out, len);
    *len = with_spaces(s, n, out);
    return true;
}

static int add_piece(struct tokenizer *t, const struct tok_vocab *v,
                     const int16_t byte_of[ALPHABET], int id, size_t *used, struct err *e)
{
    const char *s = v->text[id];
    size_t n = v->len[id];
    size_t len = n;
    char *out = t->pool + *used;
    int kind = kind_of(v, id);
    if (kind == TOK_BYTE) {
        int b = tok_byte_name(s, n);
        if (b < 0)
            return err_set(e, ERR_FORMAT, "token %d is a byte but is not called <0x00> to <0xFF>",
                           id);
        out[0] = (char)b;
        len = 1;
        t->byte_id[b] = id;
    } else if (kind != TOK_NORMAL && (kind != TOK_USER_DEFINED || v->model != TOK_SPM)) {
        memcpy(out, s, n);
    } else if (!to_bytes(v->model, byte_of, s, n, out, &len)) {
        memcpy(out, s, n); /* some vocabularies hold added words as they are */
        len = n;
    }
    out[len] = 0;
    t->piece[id] = (struct tok_piece){ (uint32_t)*used, (uint32_t)len };
    t->kind[id] = (uint8_t)kind;
    *used += len + 1;
    return 0;
}

static uint32_t hash_bytes(const char *s, size_t n)
{
    return (uint32_t)XXH3_64bits(s, n);
}

static bool same_piece(const struct tokenizer *t, int32_t id, const char *s, size_t n)
{
    return t->piece[id].len == n && memcmp(t->pool + t->piece[id].at, s, n) == 0;
}

static uint32_t find_slot(const struct tokenizer *t, const char *s, size_t n)
{
    uint32_t i = hash_bytes(s, n) & t->slot_mask;
    while (t->slot[i] >= 0 && !same_piece(t, t->slot[i], s, n))
        i = (i + 1) & t->slot_mask;
    return i;
}

static uint32_t table_size(int n)
{
    uint32_t size = 16;
    while (size < 2 * (uint32_t)n)
        size *= 2;
    return size;
}

static int build_pieces(struct tokenizer *t, const struct tok_vocab *v, struct err *e)
{
    int16_t byte_of[ALPHABET];
    size_t total = 0;
    for (int i = 0; i < v->n; i++)
        total += v->len[i] + 2;
    uint32_t slots = table_size(v->n);
    t->pool = total < UINT32_MAX ? mem_alloc(total) : NULL;
    t->piece = mem_zalloc((size_t)v->n, sizeof *t->piece);
    t->kind = mem_zalloc((size_t)v->n, 1);
    t->eog = mem_zalloc((size_t)v->n, sizeof *t->eog);
    t->score = mem_zalloc((size_t)v->n, sizeof *t->score);
    t->slot = mem_alloc(slots * sizeof *t->slot);
    if (t->pool == NULL || t->piece == NULL || t->kind == NULL || t->eog == NULL ||
        t->score == NULL || t->slot == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a vocabulary of %d tokens", v->n);
    memset(t->slot, -1, slots * sizeof *t->slot);
    t->slot_mask = slots - 1;
    memset(t->byte_id, -1, sizeof t->byte_id);
    alphabet_bytes(byte_of);
    size_t used = 0;
    t->longest = 1;
    for (int i = 0; i < v->n; i++) {
        TRY(add_piece(t, v, byte_of, i, &used, e));
        t->longest = t->piece[i].len > t->longest ? t->piece[i].len : t->longest;
        t->score[i] = v->score != NULL ? v->score[i] : 0;
        if (t->score[i] != t->score[i])
            return err_set(e, ERR_FORMAT, "the score of token %d is no number", i);
        if (!is_text(t->kind[i]) || t->piece[i].len == 0)
            continue;
        uint32_t k = find_slot(t, t->pool + t->piece[i].at, t->piece[i].len);
        if (t->slot[k] < 0)
            t->slot[k] = i; /* of two tokens with the same text the first one is used */
    }
    return 0;
}

static uint32_t merge_slot(const struct tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32) & t->merge_mask;
}

const struct tok_merge *tok_merge_find(const struct tokenizer *t, int32_t left, int32_t right)
{
    for (uint32_t i = merge_slot(t, left, right);; i = (i + 1) & t->merge_mask) {
        const struct tok_merge *m = &t->merge[i];
        if (m->left < 0)
            return NULL;
        if (m->left == left && m->right == right)
            return m;
    }
}

/* One "left right" line; parts that are no tokens (some vocabularies have such lines) are passed over. */
static int add_merge(struct tokenizer *t, const struct tok_vocab *v,
                     const int16_t byte_of[ALPHABET], int rank, struct err *e)
{
    char both[1024];
    const char *s = v->merge[rank];
    size_t n = v->merge_len[rank];
    const char *blank = n > 2 ? memchr(s + 1, ' ', n - 1) : NULL;
    size_t l = 0;
    size_t r = 0;
    if (blank == NULL || n > sizeof both)
        return err_set(e, ERR_FORMAT, "merge %d is not \"left right\"", rank);
    size_t cut = (size_t)(blank - s);
    if (!to_bytes(v->model, byte_of, s, cut, both, &l) ||
        !to_bytes(v->model, byte_of, blank + 1, n - cut - 1, both + l, &r))
        return 0;
    int32_t left = tok_find(t, both, l);
    int32_t right = tok_find(t, both + l, r);
    int32_t merged = tok_find(t, both, l + r);
    if (left < 0 || right < 0 || merged < 0)
        return 0;
    uint32_t i = merge_slot(t, left, right);
    while (t->merge[i].left >= 0) {
        if (t->merge[i].left == left && t->merge[i].right == right)
            return 0; /* the better rank stands */
        i = (i + 1) & t->merge_mask;
    }
    t->merge[i] = (struct tok_merge){ left, right, rank, merged };
    return 0;
}

static int build_merges(struct tokenizer *t, const struct tok_vocab *v, struct err *e)
{
    int16_t byte_of[ALPHABET];
    uint32_t size = table_size(v->n_merges);
    t->merge = mem_alloc(size * sizeof *t->merge);
    if (t->merge == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d merges", v->n_merges);
    t->merge_mask = size - 1;
    for (uint32_t i = 0; i < size; i++)
        t->merge[i].left = -1;
    alphabet_bytes(byte_of);
    for (int i = 0; i < v->n_merges; i++)
        TRY(add_merge(t, v, byte_of, i, e));
    return 0;
}

static int build_bpe(struct tokenizer *t, const struct tok_vocab *v, struct err *e)
{
    int n_bytes = 0;
    TRY(pretoken_open(&t->pre, v->pre != NULL ? v->pre : "default", &t->whole_words, &t->nfc, e));
    t->nfc = v->nfc != 0 ? v->nfc > 0 : t->nfc;
    t->whole_words = v->whole_words != 0 ? v->whole_words > 0 : t->whole_words;
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_id[b] = tok_find(t, &c, 1);
        n_bytes += t->byte_id[b] >= 0;
    }
    if (n_bytes == 0)
        return err_set(e, ERR_FORMAT, "the vocabulary has no token for any single byte");
    t->gaps = n_bytes < 256;
    return build_merges(t, v, e);
}

static bool has_inner_space(const char *s, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (s[i] == ' ' && s[i - 1] != ' ')
            return true;
    return false;
}

static int build_spm(struct tokenizer *t, const struct tok_vocab *v, struct err *e)
{
    if (v->n_merges > 0)
        TRY(build_merges(t, v, e));
    t->spaces_lead = true;
    for (int i = 0; t->spaces_lead && i < t->n; i++)
        t->spaces_lead =
            !is_text(t->kind[i]) || !has_inner_space(t->pool + t->piece[i].at, t->piece[i].len);
    for (int b = 0; t->unk < 0 && b < 256; b++)
        if (t->byte_id[b] < 0)
            return err_set(e, ERR_FORMAT,
                           "the vocabulary has neither an unknown token nor one for byte 0x%02X",
                           b);
    return 0;
}

static bool is_name(int kind)
{
    return kind == TOK_CONTROL || kind == TOK_USER_DEFINED;
}

/* By bytes, a name before those that it begins; of two tokens with the same name the first one is used. */
static int compare_specials(const void *a, const void *b, void *arg)
{
    const struct tokenizer *t = arg;
    const struct tok_piece *p = &t->piece[*(const int32_t *)a];
    const struct tok_piece *q = &t->piece[*(const int32_t *)b];
    int d = memcmp(t->pool + p->at, t->pool + q->at, p->len < q->len ? p->len : q->len);
    if (d != 0)
        return d;
    if (p->len != q->len)
        return p->len < q->len ? -1 : 1;
    return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1;
}

static int build_specials(struct tokenizer *t, struct err *e)
{
    int count[256] = { 0 };
    for (int i = 0; i < t->n; i++)
        t->n_special += is_name(t->kind[i]) && t->piece[i].len > 0;
    t->special = mem_alloc((size_t)(t->n_special + 1) * sizeof *t->special);
    if (t->special == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d special tokens", t->n_special);
    int k = 0;
    for (int i = 0; i < t->n; i++) {
        if (!is_name(t->kind[i]) || t->piece[i].len == 0)
            continue;
        t->special[k++] = i;
        count[(unsigned char)t->pool[t->piece[i].at]]++;
    }
    qsort_r(t->special, (size_t)k, sizeof *t->special, compare_specials, t);
    for (int b = 0; b < 256; b++)
        t->special_first[b + 1] = t->special_first[b] + count[b];
    return 0;
}

bool tok_names_end(const char *name, size_t n)
{
    static const char *const end[] = { "</s>",          "<|im_end|>",      "<|endoftext|>",
                                       "<|eot_id|>",    "<|end_of_text|>", "<|eom_id|>",
                                       "<end_of_turn>", "<|end|>",         "<|endofturn|>",
                                       "<|eot|>",       "<|end_of_turn|>" };
    for (size_t i = 0; i < sizeof end / sizeof end[0]; i++)
        if (strlen(end[i]) == n && memcmp(end[i], name, n) == 0)
            return true;
    return false;
}

static void mark_eog(struct tokenizer *t, const struct tok_vocab *v)
{
    for (int i = 0; i < v->n_eog; i++)
        t->eog[v->eog[i]] = true;
    if (t->eos >= 0)
        t->eog[t->eos] = true;
    if (t->eot >= 0)
        t->eog[t->eot] = true;
    for (int i = 0; i < t->n_special; i++) {
        int32_t id = t->special[i];
        if (t->kind[id] == TOK_CONTROL &&
            tok_names_end(t->pool + t->piece[id].at, t->piece[id].len))
            t->eog[id] = true;
    }
}

static int check_vocab(const struct tok_vocab *v, struct err *e)
{
    if (v->n < 1 || v->n > MAX_TOKENS || v->n_merges < 0 || v->n_merges > MAX_TOKENS)
        return err_set(e, ERR_FORMAT,
                       "a vocabulary of %d tokens and %d merges; 1 to %d are possible", v->n,
                       v->n_merges, MAX_TOKENS);
    const int32_t id[] = { v->bos, v->eos, v->unk, v->eot };
    const char *const name[] = { "bos", "eos", "unk", "eot" };
    for (int i = 0; i < 4; i++)
        if (id[i] < -1 || id[i] >= v->n)
            return err_set(e, ERR_FORMAT, "the %s token is %d, the vocabulary has %d tokens",
                           name[i], id[i], v->n);
    for (int i = 0; i < v->n_eog; i++)
        if (v->eog[i] < 0 || v->eog[i] >= v->n)
            return err_set(e, ERR_FORMAT,
                           "token %d is said to end a generation, the vocabulary has %d tokens",
                           v->eog[i], v->n);
    return 0;
}

int tok_open(struct tokenizer **out, const struct tok_vocab *v, struct err *e)
{
    TRY(check_vocab(v, e));
    struct tokenizer *t = mem_zalloc(1, sizeof *t);
    if (t == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a tokenizer");
    t->model = v->model;
    t->n = v->n;
    t->bos = v->bos;
    t->eos = v->eos;
    t->unk = v->unk;
    t->eot = v->eot;
    t->add_bos = v->add_bos && v->bos >= 0;
    t->add_eos = v->add_eos && v->eos >= 0;
    t->add_space_prefix = v->add_space_prefix;
    t->prefix_first_only = v->prefix_first_only;
    t->prefix_if_none = v->prefix_if_none;
    int rc = build_pieces(t, v, e);
    if (rc == 0)
        rc = v->model == TOK_BPE ? build_bpe(t, v, e) : build_spm(t, v, e);
    if (rc == 0)
        rc = build_specials(t, e);
    if (rc < 0) {
        tok_close(t);
        return rc;
    }
    mark_eog(t, v);
    *out = t;
    return 0;
}

void tok_close(struct tokenizer *t)
{
    if (t == NULL)
        return;
    pretoken_close(t->pre);
    mem_free(t->special);
    mem_free(t->merge);
    mem_free(t->slot);
    mem_free(t->score);
    mem_free(t->eog);
    mem_free(t->kind);
    mem_free(t->piece);
    mem_free(t->pool);
    mem_free(t);
}

/* ---- looking up -------------------------------------------------------------------------------------------------- */

int tok_n(const struct tokenizer *t)
{
    return t->n;
}

int32_t tok_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tok_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tok_adds_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

static bool has(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n;
}

bool tok_is_eog(const struct tokenizer *t, int32_t id)
{
    return has(t, id) && t->eog[id];
}

bool tok_is_special(const struct tokenizer *t, int32_t id)
{
    return has(t, id) && (t->kind[id] == TOK_CONTROL || t->kind[id] == TOK_UNKNOWN);
}

const char *tok_piece(const struct tokenizer *t, int32_t id, int *len)
{
    if (!has(t, id))
        return NULL;
    if (len != NULL)
        *len = (int)t->piece[id].len;
    return t->pool + t->piece[id].at;
}

const char *tok_text(const struct tokenizer *t, int32_t id)
{
    return tok_piece(t, id, NULL);
}

int32_t tok_find(const struct tokenizer *t, const char *piece, size_t len)
{
    return t->slot[find_slot(t, piece, len)];
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

void tok_ids_free(struct tok_ids *ids)
{
    mem_free(ids->id);
    *ids = (struct tok_ids){ 0 };
}

int tok_push(struct tok_ids *out, int32_t id)
{
    if (out->n == out->cap) {
        if (out->cap >= 1 << 30)
            return ERR_LIMIT;
        int cap = out->cap ? 2 * out->cap : 64;
        int32_t *p = mem_realloc(out->id, (size_t)cap * sizeof *p);
        if (p == NULL)
            return ERR_NOMEM;
        out->id = p;
        out->cap = cap;
    }
    out->id[out->n++] = id;
    return 0;
}

/* Of the specials lo to hi, which have the same first `at` bytes, the first one whose next is `byte` or more; names that end
 * there come first. */
static int first_special(const struct tokenizer *t, int lo, int hi, size_t at, int byte)
{
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        const struct tok_piece *p = &t->piece[t->special[mid]];
        if (p->len > at && (unsigned char)t->pool[p->at + at] >= byte)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* The special token whose name stands at s, the longest one; -1: none. Narrows the sorted names byte by byte, so that many
 * names with the same beginning cost little more than one. */
static int32_t special_at(const struct tokenizer *t, const char *s, size_t n)
{
    int lo = t->special_first[(unsigned char)s[0]];
    int hi = t->special_first[(unsigned char)s[0] + 1];
    int32_t longest = -1;
    for (size_t at = 1; lo < hi; at++) {
        if (t->piece[t->special[lo]].len == at)
            longest = t->special[lo];
        if (at == n)
            break;
        int byte = (unsigned char)s[at];
        lo = first_special(t, lo, hi, at, byte);
        hi = first_special(t, lo, hi, at, byte + 1);
    }
    return longest;
}

static int encode_plain(const struct tokenizer *t, const char *s, size_t n, bool first,
                        struct tok_ids *out)
{
    if (n == 0)
        return 0;
    return t->model == TOK_BPE ? bpe_encode(t, s, n, out) : spm_encode(t, s, n, first, out);
}

/* Splits s at the special tokens that lie wholly inside template segments. */
static int encode_split(const struct tokenizer *t, const char *s, size_t n,
                        const struct text_segment *seg, int n_seg, struct tok_ids *out)
{
    size_t plain = 0; /* start of the text not yet encoded */
    bool first = true;
    for (int k = 0; k < n_seg; k++) {
        size_t end = seg[k].start + seg[k].len;
        for (size_t i = seg[k].start; !seg[k].user && i < end;) {
            int32_t id = special_at(t, s + i, end - i);
            if (id < 0) {
                i++;
                continue;
            }
            TRY(encode_plain(t, s + plain, i - plain, first, out));
            TRY(tok_push(out, id));
            first = !t->prefix_first_only;
            i += t->piece[id].len;
            plain = i;
        }
    }
    return encode_plain(t, s + plain, n - plain, first, out);
}

int tok_encode(const struct tokenizer *t, const char *s, size_t n, unsigned flags,
               struct tok_ids *out)
{
    struct text_segment all = { .start = 0, .len = n, .user = (flags & TOK_PARSE_SPECIAL) == 0 };
    if ((flags & TOK_ADD_BOS) != 0 && t->add_bos)
        TRY(tok_push(out, t->bos));
    TRY(encode_split(t, s, n, &all, 1, out));
    if ((flags & TOK_ADD_BOS) != 0 && t->add_eos)
        TRY(tok_push(out, t->eos));
    return 0;
}

int64_t tok_at_least(const struct tokenizer *t, const char *s, size_t n)
{
    size_t written = 0; /* bytes that are in some token */
    if (t->nfc && nfc_may_change(s, n))
        written = t->gaps ? 0 : n / 3; /* normal form C is a third as long at least: U+212A is K */
    else if (!t->gaps)
        written = n;
    else
        for (size_t i = 0; i < n; i++)
            written += t->byte_id[(unsigned char)s[i]] >= 0;
    return (int64_t)((written + t->longest - 1) / t->longest);
}

int tok_encode_segments(const struct tokenizer *t, const char *s, const struct text_segment *seg,
                        int n_seg, struct tok_ids *out)
{
    size_t n = n_seg > 0 ? seg[n_seg - 1].start + seg[n_seg - 1].len : 0;
    return encode_split(t, s, n, seg, n_seg, out);
}
