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

static int64_t elements(const struct tensor *t)
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
    char text[32];
    snprintf(text, sizeof text, "%.7g", value);
    row_text(t, what, text);
}

static int show_config(const struct source *s, bool json)
{
    static const struct table_col cols[] = { { "property", "model" }, { "value", "" } };
    static const char *const scaling[] = { "none", "linear", "llama3" };
    const struct model_config *c = &s->config;
    struct table *t;
    if (table_open(&t, cols, 2) < 0)
        return cli_usage("no memory for a table");
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

static int show_types(const struct source *s, bool json)
{
    static const struct table_col cols[] = {
        { "type", "type" },
        { "tensors", "tensors" },
        { "parameters", "parameters" },
        { "bits_per_weight", "bits" },
        { "bytes", "bytes" },
    };
    struct table *t;
    int64_t all_n = 0;
    uint64_t all_bytes = 0;
    if (table_open(&t, cols, 5) < 0)
        return cli_usage("no memory for a table");
    for (int type = 0; type < DTYPE_N; type++) {
        int64_t n = 0;
        uint64_t bytes = 0;
        int tensors = 0;
        for (int i = 0; i < s->n_tensors; i++) {
            if ((int)s->tensor[i].type != type)
                continue;
            tensors++;
            n += elements(&s->tensor[i]);
            bytes += s->tensor[i].bytes;
        }
        all_n += n;
        all_bytes += bytes;
        if (tensors == 0)
            continue;
        table_str(t, dtype_name((enum dtype)type));
        table_int(t, tensors);
        table_int(t, n);
        table_num(t, bits(bytes, n), 3);
        table_int(t, (int64_t)bytes);
    }
    table_str(t, "all");
    table_int(t, s->n_tensors);
    table_int(t, all_n);
    table_num(t, bits(all_bytes, all_n), 3);
    table_int(t, (int64_t)all_bytes);
    return cli_table(t, json);
}

static int show_tensors(const struct source *s, bool json)
{
    static const struct table_col cols[] = {
        { "tensor", "tensor" },        { "type", "type" },   { "shape", "shape" },
        { "bits_per_weight", "bits" }, { "bytes", "bytes" },
    };
    struct table *t;
    if (table_open(&t, cols, 5) < 0)
        return cli_usage("no memory for a table");
    for (int i = 0; i < s->n_tensors; i++) {
        const struct tensor *x = &s->tensor[i];
        char shape[96] = "";
        size_t at = 0;
        for (int k = 0; k < x->n_dims; k++)
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%lld", k ? " x " : "",
                                   (long long)x->dim[k]);
        table_str(t, x->name);
        table_str(t, dtype_name(x->type));
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

/* Opens every matrix in turn as loading would; memory that nobody touches costs nothing. */
static int plan_weights(struct table *t, const struct source *s, struct be *be, const char *word,
                        struct err *e)
{
    char what[48];
    char detail[64];
    double bytes = 0;
    double n = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        const struct tensor *x = &s->tensor[i];
        struct weight w;
        n += (double)elements(x);
        if (x->n_dims != 2) {
            bytes += (double)elements(x) * sizeof(float);
            continue;
        }
        int rc = weight_open(&w, be, load_word(x->name, word), false, x->type, (int)x->dim[0],
                             (int)x->dim[1], e);
        if (rc < 0)
            return err_prefix(e, "tensor %s", x->name);
        bytes += (double)weight_bytes(&w);
        weight_close(&w, be);
    }
    snprintf(what, sizeof what, "weights %s", word);
    snprintf(detail, sizeof detail, "%.2f bits per weight", n > 0 ? 8 * bytes / n : 0);
    plan_row(t, what, bytes, detail);
    return 0;
}

static void plan_kv(struct table *t, const struct inspect *in, const struct model_config *c)
{
    int64_t ctx = in->ctx > 0 ? in->ctx : c->ctx_train;
    for (int type = 0; type < KV_TYPE_N; type++) {
        struct kv_shape shape = { .n_layers = c->n_layers,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = c->head_dim,
                                  .type = (enum kv_type)type };
        char what[48];
        char detail[64];
        if (in->kv_type >= 0 && type != in->kv_type)
            continue;
        double token = (double)kv_token_bytes(&shape);
        snprintf(what, sizeof what, "kv cache %s", kv_type_name(shape.type));
        snprintf(detail, sizeof detail, "%lld tokens, %.0f B a token", (long long)ctx, token);
        plan_row(t, what, token * (double)ctx, detail);
    }
}

static int show_plan(const struct inspect *in, const struct source *s, struct err *e)
{
    static const struct table_col cols[] = {
        { "memory", "memory" }, { "bytes", "bytes" }, { NULL, "MiB" }, { "detail", "" }
    };
    struct table *t;
    struct be *be;
    struct be_config bc = { .device = "cpu", .n_threads = 1, .isa = "auto" };
    TRY(be_open(&be, &bc, e));
    int rc = table_open(&t, cols, 4);
    if (rc < 0) {
        be_close(be);
        return err_set(e, rc, "no memory for a table");
    }
    for (const char *p = codec_names(); rc == 0 && *p != 0;) {
        char word[16];
        size_t n = strcspn(p, ", ");
        snprintf(word, sizeof word, "%.*s", (int)n, p);
        rc = plan_weights(t, s, be, word, e);
        p += n + strspn(p + n, ", ");
    }
    be_close(be);
    if (rc < 0) {
        table_close(t);
        return rc;
    }
    plan_kv(t, in, &s->config);
    return cli_table(t, in->json);
}

static int gap(bool json)
{
    return json || putchar('\n') != EOF ? 0 : 1;
}

/* The architecture completes and checks what the file says before it is shown. */
static int inspect(const struct inspect *in, struct err *e)
{
    char path[4096];
    struct source *s;
    TRY(recipe_resolve(in->model, path, sizeof path, e));
    TRY(source_open(&s, path, e));
    const struct arch *a = arch_find(s->config.arch);
    int rc = a != NULL ? a->check(&s->config, e)
                       : err_set(e, ERR_UNSUPPORTED, "%s: architecture \"%s\" is not known", path,
                                 s->config.arch);
    if (rc == 0)
        rc = show_config(s, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_tensors(s, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_types(s, in->json);
    if (rc == 0)
        rc = gap(in->json);
    if (rc == 0)
        rc = show_plan(in, s, e);
    source_close(s);
    return rc;
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect in = { .kv_type = -1 };
    struct err e;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return fputs(help, stdout) < 0;
    int code = parse(&in, argc, argv);
    if (code != 0)
        return code;
    int rc = inspect(&in, &e);
    return rc < 0 ? cli_fail(&e) : rc;
}
