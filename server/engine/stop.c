#include "server/engine/stop.h"

#include <string.h>

#include "server/base/mem.h"

/* Knuth, Morris and Pratt: state is the length of the longest beginning of s that ends the text so far; fail[k] is the state
 * to go on from when s[k] does not follow. */
struct stop_string {
    const char *s;
    int len, state;
    int *fail;
};

static void make_fail(struct stop_string *t)
{
    t->fail[0] = 0;
    for (int i = 1, k = 0; i < t->len; i++) {
        t->fail[i] = k;
        while (k > 0 && t->s[i] != t->s[k])
            k = t->fail[k];
        if (t->s[i] == t->s[k])
            k++;
    }
}

int stop_open(struct stop *s, const char *const *str, int n)
{
    size_t total = 0;
    *s = (struct stop){ 0 };
    for (int i = 0; i < n; i++)
        total += strlen(str[i]);
    if (total == 0)
        return 0;
    s->str = mem_zalloc((size_t)n, sizeof *s->str);
    s->fail = mem_zalloc(total, sizeof *s->fail);
    if (s->str == NULL || s->fail == NULL) {
        stop_close(s);
        return ERR_NOMEM;
    }
    int *fail = s->fail;
    for (int i = 0; i < n; i++) {
        struct stop_string t = { .s = str[i], .len = (int)strlen(str[i]), .fail = fail };
        if (t.len == 0)
            continue;
        make_fail(&t);
        s->str[s->n++] = t;
        fail += t.len;
    }
    return 0;
}

void stop_close(struct stop *s)
{
    mem_free(s->fail);
    mem_free(s->str);
    *s = (struct stop){ 0 };
}

/* One byte further: the length of the longest string that is complete now, or 0. */
static int step(struct stop *s, char c)
{
    int done = 0;
    for (int i = 0; i < s->n; i++) {
        struct stop_string *t = &s->str[i];
        while (t->state > 0 && t->s[t->state] != c)
            t->state = t->fail[t->state];
        if (t->s[t->state] == c)
            t->state++;
        if (t->state == t->len && t->len > done)
            done = t->len;
    }
    return done;
}

size_t stop_push(struct stop *s, const char *text, size_t n)
{
    if (s->n == 0)
        return n;
    for (size_t i = s->scanned; i < n; i++) {
        int done = step(s, text[i]);
        if (done > 0) {
            s->hit = true;
            return i + 1 - (size_t)done;
        }
    }
    size_t held = 0;
    for (int i = 0; i < s->n; i++)
        if ((size_t)s->str[i].state > held)
            held = (size_t)s->str[i].state;
    s->scanned = held;
    return n - held;
}
