#include "server/base/table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "server/base/mem.h"

struct cell {
    char *text; /* as shown; NULL: empty */
    bool number;
};

struct table {
    const struct table_col *col;
    int n_cols;
    struct cell *cell;
    int n, cap; /* cells */
    int bad;
};

int table_open(struct table **out, const struct table_col *cols, int n_cols)
{
    struct table *t = mem_zalloc(1, sizeof *t);
    if (t == NULL)
        return ERR_NOMEM;
    t->col = cols;
    t->n_cols = n_cols;
    *out = t;
    return 0;
}

void table_close(struct table *t)
{
    if (t == NULL)
        return;
    for (int i = 0; i < t->n; i++)
        mem_free(t->cell[i].text);
    mem_free(t->cell);
    mem_free(t);
}

static void add(struct table *t, const char *text, bool number)
{
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 64;
        struct cell *c = mem_realloc(t->cell, (size_t)cap * sizeof *c);
        if (c == NULL) {
            t->bad = ERR_NOMEM;
            return;
        }
        t->cell = c;
        t->cap = cap;
    }
    char *copy = mem_strdup(text);
    if (copy == NULL)
        t->bad = ERR_NOMEM;
    else
        t->cell[t->n++] = (struct cell){ copy, number };
}

/* A file may call itself anything: control characters would reach the terminal, and what is no UTF-8 makes no JSON. */
static void clean(char *s)
{
    for (size_t n; *s != 0; s += n) {
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t got = utf8proc_iterate((const utf8proc_uint8_t *)s, -1, &c);
        n = got > 0 ? (size_t)got : 1;
        if (got <= 0 || c < 0x20 || (c >= 0x7f && c < 0xa0))
            memset(s, '?', n);
    }
}

void table_str(struct table *t, const char *s)
{
    int n = t->n;
    add(t, s, false);
    if (t->n > n)
        clean(t->cell[n].text);
}

void table_int(struct table *t, int64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)v);
    add(t, text, true);
}

void table_num(struct table *t, double v, int digits)
{
    char text[64] = "-";
    if (isfinite(v))
        snprintf(text, sizeof text, "%.*f", digits, v);
    add(t, text, true);
}

void table_real(struct table *t, double v)
{
    char text[32] = "-";
    if (isfinite(v))
        snprintf(text, sizeof text, "%.7g", v);
    add(t, text, true);
}

/* Columns a person sees, counted in code points. */
static int width(const char *s)
{
    int n = 0;
    for (; *s != 0; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

static void pad(struct buf *out, int n)
{
    while (n-- > 0)
        buf_addc(out, ' ');
}

static void print_cell(struct buf *out, const char *text, int w, bool right, bool last)
{
    if (right)
        pad(out, w - width(text));
    buf_adds(out, text);
    if (!right && !last)
        pad(out, w - width(text));
    buf_adds(out, last ? "\n" : "  ");
}

static int print_text(const struct table *t, struct buf *out)
{
    int last = 0;
    for (int c = 0; c < t->n_cols; c++)
        last = t->col[c].title != NULL ? c : last;
    int w[32] = { 0 };
    bool right[32] = { false };
    ASSERT(t->n_cols <= 32);
    for (int c = 0; c < t->n_cols; c++) {
        if (t->col[c].title == NULL)
            continue;
        w[c] = width(t->col[c].title);
        for (int i = c; i < t->n; i += t->n_cols) {
            w[c] = width(t->cell[i].text) > w[c] ? width(t->cell[i].text) : w[c];
            right[c] = t->cell[i].number;
        }
    }
    for (int c = 0; c <= last; c++)
        if (t->col[c].title != NULL)
            print_cell(out, t->col[c].title, w[c], right[c], c == last);
    for (int i = 0; i < t->n; i++) {
        int c = i % t->n_cols;
        if (t->col[c].title != NULL)
            print_cell(out, t->cell[i].text, w[c], t->cell[i].number, c == last);
    }
    return out->bad;
}

static void json_text(struct buf *out, const char *s)
{
    buf_addc(out, '"');
    for (; *s != 0; s++) {
        if (*s == '"' || *s == '\\')
            buf_addf(out, "\\%c", *s);
        else
            buf_addc(out, *s);
    }
    buf_addc(out, '"');
}

static int print_json(const struct table *t, struct buf *out)
{
    for (int row = 0; row + t->n_cols <= t->n; row += t->n_cols) {
        const char *sep = "{";
        for (int c = 0; c < t->n_cols; c++) {
            if (t->col[c].key == NULL)
                continue;
            const struct cell *cell = &t->cell[row + c];
            buf_adds(out, sep);
            json_text(out, t->col[c].key);
            buf_addc(out, ':');
            if (cell->number)
                buf_adds(out, strcmp(cell->text, "-") == 0 ? "null" : cell->text);
            else
                json_text(out, cell->text);
            sep = ",";
        }
        buf_adds(out, "}\n");
    }
    return out->bad;
}

int table_print(const struct table *t, bool json, struct buf *out)
{
    if (t->bad != 0)
        return t->bad;
    return json ? print_json(t, out) : print_text(t, out);
}
