/* wring inspect MODEL: what a model file holds and what memory it will take, without loading it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/cli/cli.h"
#include "server/cli/recipe.h"
#include "server/model/load.h"

struct inspect {
    const char *model;
    int64_t ctx; /* 0: what the model was trained for */
    int kv_type; /* enum kv_type, or -1: all */
    bool json;
};

static const char help[] =
    "Usage: wring inspect MODEL [options]\n\n"
    "Shows architecture, tensor types, tensors and the memory plan of a model: a GGUF file, a\n"
    "Hugging Face folder or the name of a recipe.\n\n"
    "  --ctx N       tokens of the KV cache in the plan (default: what the model was trained for)\n"
    "  --kv-type T   element type of the KV cache in the plan: f16, bf16 or f32 (default: all)\n"
    "  --json        one JSON object a line instead of tables\n"
    "  --help        this text\n";

/* A line of the table of tensors: a tensor, or a matrix that the file keeps in parts. */
struct item {
    const char *name, *type; /* of a pressed matrix: its form */
    bool pressed;
    enum dtype dtype; /* of a tensor */
    int n_dims;
    int64_t dim[4];
    uint64_t bytes; /* in the file */
};

struct items {
    struct item *item;
    int n;
};

static int64_t elements(const struct item *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++)
        n *= t->dim[i];
    return n;
}

static double bits(uint64_t bytes, int64_t n)
{
    return n > 0 ? 8.0 * (double)bytes / (double)n : 0;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static int kv_type_of(const char *word)
{
    for (int t = 0; t < KV_TYPE_N; t++)
        if (strcmp(word, kv_type_name((enum kv_type)t)) == 0)
            return t;
    return -1;
}

static int set_option(struct inspect *in, const char *name, const char *value)
{
    if (strcmp(name, "--ctx") == 0) {
        char *end;
        errno = 0;
        in->ctx = strtoll(value, &end, 10);
        if (errno != 0 || end == value || *end != 0 || in->ctx < 1 || in->ctx > 1 << 30)
            return cli_usage("--ctx: \"%s\" is not a number of tokens", value);
        return 0;
    }
    in->kv_type = kv_type_of(value);
    return in->kv_type >= 0 ? 0 : cli_usage("--kv-type: \"%s\" is not f16, bf16 or f32", value);
}

/* 0, or the exit code of a wrong use. */
static int parse(struct inspect *in, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        char name[16];
        const char *equals = strchr(argv[i], '=');
        const char *value = equals != NULL ? equals + 1 : i + 1 < argc ? argv[i + 1] : NULL;
        snprintf(name, sizeof name, "%.*s",
                 equals != NULL ? (int)(equals - argv[i]) : (int)strlen(argv[i]), argv[i]);
        if (strcmp(argv[i], "--json") == 0) {
            in->json = true;
        } else if (strcmp(name, "--ctx") == 0 || strcmp(name, "--kv-type") == 0) {
            if (value == NULL)
                return cli_usage("%s: a value is missing", name);
            int code = set_option(in, name, value);
            if (code != 0)
                return code;
            i += equals == NULL;
        } else if (argv[i][0] == '-' || in->model != NULL) {
            return cli_usage("%s is not expected; usage: wring inspect MODEL [options]", argv[i]);
        } else {
            in->model = argv[i];
        }
    }
    return in->model != NULL ? 0 : cli_usage("usage: wring inspect MODEL [options]");
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static void row_text(struct table *t, const char *what, const char *value)
{
    table_str(t, what);
    table_str(t, value);
}

static void row_number(struct table *t, const char *what, double value)
{
    table_str(t, what);
    table_real(t, value);
}

static int show_config(const struct source *s, bool json)
{
    static const struct table_col cols[] = { { "property", "model" }, { "value", "" } };
    static const char *const scaling[] = { "none", "linear", "llama3" };
    const struct model_config *c = &s->config;
    struct table *t;
    if (table_open(&t, cols, 2) < 0)
        return cli_no_table();
    row_text(t, "name", c->name);
    row_text(t, "format", source_format_name(s));
    row_text(t, "architecture", c->arch);
    row_number(t, "layers", c->n_layers);
    row_number(t, "dim", c->dim);
    row_number(t, "query heads", c->n_heads);
    row_number(t, "kv heads", c->n_kv_heads);
    row_number(t, "head size", c->head_dim);
    row_number(t, "ffn", c->ffn);
    row_number(t, "vocabulary", c->vocab);
    row_number(t, "context", c->ctx_train);
    row_number(t, "sliding window", c->window);
    row_number(t, "rope base", (double)c->rope_theta);
    row_text(t, "rope scaling", scaling[c->rope_scaling]);
    row_number(t, "norm epsilon", (double)c->norm_eps);
    row_text(t, "tied head", c->tied ? "yes" : "no");
    row_text(t, "chat template", s->chat_template != NULL ? "yes" : "no");
    return cli_table(t, json);
}

/* ---- what the file holds ----------------------------------------------------------------------------------------- */

/* Whether the tensor belongs to a pressed matrix: its module is one of theirs. */
static bool is_part(const struct source *s, const struct tensor *x)
{
    char matrix[128];
    const char *dot = strrchr(x->name, '.');
    if (dot == NULL || s->n_forms == 0)
        return false;
    int n = snprintf(matrix, sizeof matrix, "%.*s.weight", (int)(dot - x->name), x->name);
    return n > 0 && (size_t)n < sizeof matrix && strcmp(dot, ".bias") != 0 &&
           source_form(s, matrix) != NULL;
}

static void list_tensors(struct items *list, const struct source *s)
{
    for (int i = 0; i < s->n_tensors; i++) {
        const struct tensor *x = &s->tensor[i];
        if (is_part(s, x))
            continue;
        struct item *t = &list->item[list->n++];
        *t = (struct item){ .name = x->name,
                            .type = dtype_name(x->type),
                            .dtype = x->type,
                            .n_dims = x->n_dims,
                            .bytes = x->bytes };
        memcpy(t->dim, x->dim, sizeof t->dim);
    }
}

struct listing {
    const struct source *s;
    struct items *list;
};

static const struct slot *find_matrix(const struct model *m, const char *name)
{
    for (int i = 0; i < m->n_slots; i++)
        if (m->slot[i].w != NULL && strcmp(m->slot[i].name, name) == 0)
            return &m->slot[i];
    return NULL;
}

/* The pressed matrices, with shapes from the slots of a model that is not loaded. */
static int list_pressed(struct model *m, void *arg, struct err *e)
{
    const struct listing *l = arg;
    for (int i = 0; i < l->s->n_forms; i++) {
        const struct source_form *form = &l->s->form[i];
        const struct slot *slot = find_matrix(m, form->name);
        const struct tensor *part[CODEC_PARTS];
        struct weight w;
        if (slot == NULL)
            return err_set(e, ERR_FORMAT, "%s has the form %s, but the model has no such matrix",
                           form->name, form->word);
        if (weight_set_form(&w, form->word, slot->rows, slot->cols, e) < 0)
            return err_prefix(e, "tensor %s", form->name);
        int n = load_parts(l->s, form->name, &w, part, e);
        TRY(n);
        struct item *t = &l->list->item[l->list->n++];
        *t = (struct item){ .name = form->name,
                            .type = form->word,
                            .pressed = true,
                            .n_dims = 2,
                            .dim = { slot->rows, slot->cols } };
        for (int k = 0; k < n; k++)
            t->bytes += part[k]->bytes;
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

static int list_items(struct items *list, const struct source *s, struct be *be, struct err *e)
{
    struct model *m;
    list->item = mem_zalloc((size_t)(s->n_tensors + s->n_forms), sizeof *list->item);
    if (list->item == NULL)
        return err_set(e, ERR_NOMEM, "no memory to list %d tensors", s->n_tensors);
    list_tensors(list, s);
    if (s->n_forms > 0) {
        TRY(model_build(&m, &s->config, be, list_pressed, &(struct listing){ s, list }, e));
        model_close(m);
    }
    qsort(list->item, (size_t)list->n, sizeof *list->item, by_name);
    return 0;
}

/* One line of the table of types: items of a type, or all (NULL). */
static void type_row(struct table *t, const struct items *list, const char *type)
{
    int64_t n = 0;
    uint64_t bytes = 0;
    int tensors = 0;
    for (int i = 0; i < list->n; i++) {
        const struct item *x = &list->item[i];
        if (type != NULL && strcmp(x->type, type) != 0)
            continue;
        tensors++;
        n += elements(x);
        bytes += x->bytes;
    }
    table_str(t, type != NULL ? type : "all");
    table_int(t, tensors);
    table_int(t, n);
    table_num(t, bits(bytes, n), 3);
    table_int(t, (int64_t)bytes);
}

static bool is_first_of_type(const struct items *list, int i)
{
    int k = 0;
    while (strcmp(list->item[k].type, list->item[i].type) != 0)
        k++;
    return k == i;
}

static int show_types(const struct items *list, bool json)
{
    static const struct table_col cols[] = {
        { "type", "type" },
        { "tensors", "tensors" },
        { "parameters", "parameters" },
        { "bits_per_weight", "bits" },
        { "bytes", "bytes" },
    };
    struct table *t;
    if (table_open(&t, cols, 5) < 0)
        return cli_no_table();
    for (int i = 0; i < list->n; i++)
        if (is_first_of_type(list, i))
            type_row(t, list, list->item[i].type);
    type_row(t, list, NULL);
    return cli_table(t, json);
}

static int show_tensors(const struct items *list, bool json)
{
    static const struct table_col cols[] = {
        { "tensor", "tensor" },        { "type", "type" },   { "shape", "shape" },
        { "bits_per_weight", "bits" }, { "bytes", "bytes" },
    };
    struct table *t;
    if (table_open(&t, cols, 5) < 0)
        return cli_no_table();
    for (int i = 0; i < list->n; i++) {
        const struct item *x = &list->item[i];
        char shape[96] = "";
        size_t at = 0;
        for (int k = 0; k < x->n_dims; k++)
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%lld", k ? " x " : "",
                                   (long long)x->dim[k]);
        table_str(t, x->name);
        table_str(t, x->type);
        table_str(t, shape);
        table_num(t, bits(x->bytes, elements(x)), 3);
        table_int(t, (int64_t)x->bytes);
    }
    return cli_table(t, json);
}

/* ---- the plan ---------------------------------------------------------------------------------------------------- */

static void plan_row(struct table *t, const char *what, double bytes, const char *detail)
{
    table_str(t, what);
    table_int(t, (int64_t)bytes);
    table_num(t, bytes / 1048576, 1);
    table_str(t, detail);
}

static int open_matrix(struct weight *w, const struct item *x, struct be *be, const char *word,
                       struct err *e)
{
    int rows = (int)x->dim[0];
    int cols = (int)x->dim[1];
    if (x->pressed)
        return weight_open_form(w, be, x->type, false, rows, cols, e);
    return weight_open(w, be, load_word(x->name, word), false, x->dtype, rows, cols, e);
}

/* Opens every matrix in turn as loading would; memory that nobody touches costs nothing. */
static int plan_weights(struct table *t, const struct items *list, struct be *be, const char *word,
                        struct err *e)
{
    char what[48];
    char detail[64];
    double bytes = 0;
    double n = 0;
    for (int i = 0; i < list->n; i++) {
        const struct item *x = &list->item[i];
        struct weight w;
        n += (double)elements(x);
        if (x->n_dims != 2) {
            bytes += (double)elements(x) * sizeof(float);
            continue;
        }
        if (open_matrix(&w, x, be, word, e) < 0)
            return err_prefix(e, "tensor %s", x->name);
        bytes += (double)weight_bytes(&w);
        weight_close(&w, be);
    }
    snprintf(what, sizeof what, "weights %s", word);
    snprintf(detail, sizeof detail, "%.2f bits per weight", n > 0 ? 8 * bytes / n : 0);
    plan_row(t, what, bytes, detail);
    return 0;
}

/* A sequence of full length as `wring serve` would hold it: whole pages, and what goes with them so that it may be pressed. */
static void kv_rows(struct table *t, const struct inspect *in, const struct model_config *c,
                    const struct config *serve)
{
    int64_t ctx = in->ctx > 0 ? in->ctx : c->ctx_train;
    int64_t pages = (ctx + KV_PAGE - 1) / KV_PAGE;
    for (int type = 0; type < KV_TYPE_N; type++) {
        struct kv_shape shape = { .n_layers = c->n_layers,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = c->head_dim,
                                  .type = (enum kv_type)type,
                                  .n_heads = c->n_heads,
                                  .samples = (int)serve->kv_samples,
                                  .narrow_type = cli_kv_narrow(serve, (enum kv_type)type) };
        char what[48];
        char detail[64];
        if (in->kv_type >= 0 && type != in->kv_type)
            continue;
        double span = (double)kv_span_bytes(&shape);
        double token = (double)kv_token_bytes(&shape);
        snprintf(what, sizeof what, "kv cache %s", kv_type_name(shape.type));
        snprintf(detail, sizeof detail, "%lld tokens, %.0f B a token, %.0f more to press it",
                 (long long)ctx, token, span / KV_PAGE - token);
        plan_row(t, what, span * (double)pages, detail);
    }
}

static int plan_kv(struct table *t, const struct inspect *in, const struct model_config *c,
                   struct err *e)
{
    struct config serve;
    int rc = config_parse(&serve, CONFIG_SERVE, 0, NULL, e);
    if (rc == 0)
        kv_rows(t, in, c, &serve);
    config_free(&serve);
    return rc;
}

static int show_plan(const struct inspect *in, const struct source *s, const struct items *list,
                     struct be *be, struct err *e)
{
    static const struct table_col cols[] = {
        { "memory", "memory" }, { "bytes", "bytes" }, { NULL, "MiB" }, { "detail", "" }
    };
    struct table *t;
    int rc = table_open(&t, cols, 4);
    if (rc < 0)
        return err_set(e, rc, "no memory for a table");
    /* What is pressed is loaded as it is. */
    for (const char *p = s->n_forms > 0 ? "auto" : codec_names(); rc == 0 && *p != 0;) {
        char word[16];
        size_t n = strcspn(p, ", ");
        snprintf(word, sizeof word, "%.*s", (int)n, p);
        rc = plan_weights(t, list, be, word, e);
        p += n + strspn(p + n, ", ");
    }
    if (rc == 0)
        rc = plan_kv(t, in, &s->config, e);
    if (rc < 0) {
        table_close(t);
        return rc;
    }
    return cli_table(t, in->json);
}

static int gap(bool json)
{
    return json || putchar('\n') != EOF ? 0 : 1;
}

static int show_all(const struct inspect *in, const struct source *s, const struct items *list,
                    struct be *be, struct err *e)
{
    int rc = show_config(s, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_tensors(list, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_types(list, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_plan(in, s, list, be, e);
    return rc;
}

/* The architecture completes and checks what the file says before it is shown. */
static int inspect_source(const struct inspect *in, struct source *s, struct be *be, struct err *e)
{
    struct items list = { 0 };
    const struct arch *a = arch_find(s->config.arch);
    if (a == NULL)
        return err_set(e, ERR_UNSUPPORTED, "architecture \"%s\" is not known", s->config.arch);
    TRY(a->check(&s->config, e));
    int rc = list_items(&list, s, be, e);
    if (rc == 0)
        rc = show_all(in, s, &list, be, e);
    mem_free(list.item);
    return rc;
}

static int inspect(const struct inspect *in, struct err *e)
{
    char path[4096];
    struct source *s;
    struct be *be;
    struct be_config bc = { .device = "cpu", .n_threads = 1, .isa = "auto" };
    TRY(recipe_resolve(in->model, path, sizeof path, e));
    TRY(source_open(&s, path, e));
    int rc = be_open(&be, &bc, e);
    if (rc == 0) {
        rc = inspect_source(in, s, be, e);
        be_close(be);
    }
    if (rc < 0)
        err_prefix(e, "%s", path);
    source_close(s);
    return rc;
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect in = { .kv_type = -1 };
    struct err e;
    if (cli_asks_help(argc, argv))
        return fputs(help, stdout) < 0;
    int code = parse(&in, argc, argv);
    if (code != 0)
        return code;
    int rc = inspect(&in, &e);
    return rc < 0 ? cli_fail(&e) : rc;
}
