#include "server/cli/texts.h"

#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "server/base/mem.h"
#include "server/cli/recipe.h"

enum { PATH_SIZE = 4096, MAX_TEXTS = 64, MAX_TEXT = 64 << 20 };

/* t without room for texts only counts them. */
static int add_text(struct texts *t, const char *path, struct err *e)
{
    if (t->n == MAX_TEXTS)
        return err_set(e, ERR_LIMIT, "more than %d texts", MAX_TEXTS);
    int i = t->n++;
    if (t->text == NULL)
        return file_check(path, e);
    struct buf *b = &t->text[i];
    buf_init(b, MAX_TEXT);
    return buf_read_file(b, path, e);
}

/* The folder's name as a pattern that matches nothing but it, and its texts. */
static int pattern_of(char pattern[PATH_SIZE], const char *dir, struct err *e)
{
    static const char any[] = "/*.txt";
    size_t n = 0;
    for (; *dir != 0 && n + 2 + sizeof any <= PATH_SIZE; dir++) {
        if (strchr("*?[]\\", *dir) != NULL)
            pattern[n++] = '\\';
        pattern[n++] = *dir;
    }
    memcpy(pattern + n, any, sizeof any);
    return *dir == 0 ? 0 : err_set(e, ERR_LIMIT, "the path of a folder of texts is too long");
}

static int add_folder(struct texts *t, const char *dir, struct err *e)
{
    char pattern[PATH_SIZE];
    glob_t g;
    TRY(pattern_of(pattern, dir, e));
    if (glob(pattern, 0, NULL, &g) != 0)
        return err_set(e, ERR_NOTFOUND, "%s holds no .txt file", dir);
    int rc = 0;
    for (size_t i = 0; i < g.gl_pathc && rc == 0; i++)
        rc = add_text(t, g.gl_pathv[i], e);
    globfree(&g);
    return rc;
}

static int add_list(struct texts *t, const char *list, struct err *e)
{
    char word[PATH_SIZE];
    char path[PATH_SIZE];
    struct stat st;
    for (const char *p = list; *p != 0;) {
        size_t n = strcspn(p, ",");
        snprintf(word, sizeof word, "%.*s", (int)n, p);
        p += n + (p[n] == ',');
        TRY(recipe_resolve(word, path, sizeof path, e));
        bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
        TRY(folder ? add_folder(t, path, e) : add_text(t, path, e));
    }
    return t->n > 0 ? 0 : err_set(e, ERR_INVALID, "text: at least one is needed");
}

int texts_open(struct texts *t, const char *list, struct err *e)
{
    *t = (struct texts){ .text = mem_zalloc(MAX_TEXTS, sizeof *t->text) };
    if (t->text == NULL)
        return err_set(e, ERR_NOMEM, "no memory for texts");
    int rc = add_list(t, list, e);
    if (rc < 0)
        texts_close(t);
    return rc;
}

int texts_check(const char *list, struct err *e)
{
    return add_list(&(struct texts){ 0 }, list, e);
}

void texts_close(struct texts *t)
{
    for (int i = 0; i < t->n; i++)
        buf_free(&t->text[i]);
    mem_free(t->text);
    *t = (struct texts){ 0 };
}

/* Whether the separator is one token, a special one or not; one with a space in front is another. */
static int is_token(const struct tokenizer *tok, const char *separator, bool *is)
{
    struct tok_ids ids = { 0 };
    int rc = tok_encode(tok, separator, strlen(separator), TOK_PARSE_SPECIAL, &ids);
    *is = ids.n == 1 && strcmp(tok_text(tok, ids.id[0]), separator) == 0;
    tok_ids_free(&ids);
    return rc;
}

int texts_encode(const struct tokenizer *tok, const struct buf *text, const char *separator,
                 struct tok_ids *out)
{
    size_t n = strlen(separator);
    bool whole = true; /* no cuts */
    if (n > 0)
        TRY(is_token(tok, separator, &whole));
    unsigned flags = TOK_ADD_BOS | (n > 0 ? TOK_PARSE_SPECIAL : 0);
    const char *p = buf_str(text);
    const char *end = p + text->len;
    while (p < end) {
        const char *cut = whole ? NULL : memmem(p, (size_t)(end - p), separator, n);
        const char *stop = cut != NULL ? cut : end;
        if (stop > p)
            TRY(tok_encode(tok, p, (size_t)(stop - p), flags, out));
        p = cut != NULL ? cut + n : end;
        while (p < end && *p == '\n')
            p++;
    }
    return 0;
}
