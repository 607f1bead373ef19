#include "server/config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "server/base/mem.h"

enum kind { STR, INT, NUM, BYTES, BOOL };

struct option {
    const char *group; /* a heading when set */
    const char *name;
    enum kind kind;
    size_t at;
    unsigned commands;
    const char *def; /* "" for no string */
    double min, max;
    const char *words; /* the allowed words, space separated; NULL: any */
    const char *help;
};

#define AT(field) offsetof(struct config, field)
enum {
    S = CONFIG_SERVE,
    C = CONFIG_CHAT,
    B = CONFIG_BENCH,
    V = CONFIG_EVAL,
    Q = CONFIG_QUANTIZE,
    SPEED = CONFIG_BENCH_SPEED,
    TASKS = CONFIG_EVAL_TASKS,
    TEXT = CONFIG_EVAL_PPL | CONFIG_EVAL_KL,
    PRESSED = CONFIG_BENCH_KV | CONFIG_EVAL_KV,
    JUDGED = CONFIG_EVAL_KV
};

/* clang-format off */
static const struct option table[] = {
    { "Machine", "device", STR, AT(device), CONFIG_RUN, "auto", 0, 0, NULL, "where the model runs: cpu, cuda, cuda:N; auto: the first GPU when model and KV pool fit there, else the CPU" },
    { NULL, "threads", INT, AT(threads), CONFIG_ALL, "0", 0, 256, NULL, "worker threads; 0: one per CPU this process may use" },
    { NULL, "cpu-isa", STR, AT(isa), CONFIG_ALL, "auto", 0, 0, "auto ref avx2 avx512 bf16", "highest instruction set the kernels may use" },
    { "Model", "weights", STR, AT(weights), CONFIG_RUN, "auto", 0, 0, "auto f32 f16 bf16 q8 q4", "re-encode the weights at load; auto keeps them as they are where that is lossless" },
    { NULL, "activations", STR, AT(activations), CONFIG_RUN, "auto", 0, 0, "auto int8 f32", "what products round their input to; auto: int8 in groups of 16 for weights of 8 bits and fewer on a CPU, bf16 on a GPU; f32: nothing" },
    { NULL, "cublas", BOOL, AT(cublas), CONFIG_RUN, "false", 0, 0, NULL, "GPU: products of 256 rows and more by cuBLASLt; faster prefill, but a request's bits then depend on its neighbours" },
    { NULL, "synthetic", STR, AT(synthetic), S | B, "", 0, 0, NULL, "in the place of MODEL: random weights in the shape of a known model, as llama-3.1-8b:q4" },
    { NULL, "io", STR, AT(io), CONFIG_ALL, "auto", 0, 0, "auto uring pread", "how the file is read" },
    { "Engine", "kv-type", STR, AT(kv_type), CONFIG_RUN, "auto", 0, 0, "auto f16 bf16 f32", "element type of the KV cache; auto: bf16 on a GPU and where the CPU multiplies it natively, else f16" },
    { NULL, "kv-narrow", STR, AT(kv_narrow), S | PRESSED, "auto", 0, 0, "auto same q8", "elements of a pressed cache: as kv-type, or 8 bits with a scale a slot, which takes about half the bytes; auto: q8, but same with f32, and in serve with --kv-samples 0" },
    { NULL, "ctx", INT, AT(ctx), S | C | V, "0", 0, 1 << 22, NULL, "most tokens of a sequence; 0: what the model was trained for, or what the pool holds, if that is less (eval ppl, kl: at most 512; eval tasks: at most 1024)" },
    { NULL, "kv-size", BYTES, AT(kv_size), CONFIG_ENGINE, "0", 0, 1e15, NULL, "bytes of the KV pool, as 512M or 2G; 0: four sequences of full length, at most a quarter of the memory and no more than half of what the weights leave; on a GPU as many as may run at once and fit" },
    { NULL, "max-seqs", INT, AT(max_seqs), S, "64", 1, 4096, NULL, "sequences that run at once" },
    { NULL, "max-batch", INT, AT(max_batch), CONFIG_RUN & ~CONFIG_EVAL_KL, "512", 1, 32768, NULL, "rows of one step: decoding sequences and prompt tokens together" },
    { NULL, "max-queue", INT, AT(max_queue), S, "1024", 1, 1000000, NULL, "requests that may wait; more are answered 429" },
    { NULL, "prefix-cache", BOOL, AT(prefix_cache), CONFIG_ENGINE, "true", 0, 0, NULL, "share the cache of equal prompt beginnings" },
    { "Pressing", "kv-samples", INT, AT(kv_samples), S, "4", 0, 32, "0 1 2 4 8 16 32", "queries kept with every page of 32 tokens for policies that press; 0: none, and nothing can be pressed" },
    { NULL, "kv-policy", STR, AT(kv_policy), S, "full", 0, 0, NULL, "how the cache of a request that names no policy is pressed; full: not" },
    { NULL, "kv-budget", STR, AT(kv_budget), S, "256", 0, 0, NULL, "what stays of such a cache: tokens a KV head, or a part of the prompt as 0.25, or bytes a choice as 4MiB" },
    { NULL, "kv-budget-max", STR, AT(kv_budget_max), S, "", 0, 0, NULL, "largest budget that a request may ask for, in the same words; the guard goes no further; needs a kv-policy that presses; empty: any" },
    { NULL, "kv-mass-floor", NUM, AT(kv_mass_floor), S, "0", 0, 1, NULL, "the guard: a cache whose kept slots hold less of the attention gets up to twice its budget; 0: no guard" },
    { NULL, "layer-major", INT, AT(layer_major), S, "0", 0, 1 << 22, NULL, "tokens from which a prompt to be pressed is computed layer by layer, in the pages of one layer; its prefix is not shared then; 0: only one that the pool cannot hold otherwise" },
    { "HTTP", "host", STR, AT(host), S, "127.0.0.1", 0, 0, NULL, "address to listen on" },
    { NULL, "port", INT, AT(port), S, "8080", 0, 65535, NULL, "port to listen on; 0: any free one" },
    { NULL, "api-key", STR, AT(api_key), S, "", 0, 0, NULL, "ask clients for this key (also from WRING_API_KEY)" },
    { NULL, "alias", STR, AT(alias), S, "", 0, 0, NULL, "name of the model in the API; empty: the file's name" },
    { NULL, "max-body", BYTES, AT(max_body), S, "8M", 1024, 1e9, NULL, "largest request body; larger ones are answered 413" },
    { NULL, "max-connections", INT, AT(max_connections), S, "4096", 4, 65536, NULL, "connections open at once" },
    { NULL, "http-threads", INT, AT(http_threads), S, "2", 1, 64, NULL, "threads that talk to clients" },
    { NULL, "drain-timeout", INT, AT(drain_timeout), S, "30", 0, 86400, NULL, "seconds that running requests get after SIGTERM" },
    { "Log", "log-level", STR, AT(log_level), CONFIG_ALL, "info", 0, 0, "error warn info debug", "least important level that is logged" },
    { NULL, "log-format", STR, AT(log_format), CONFIG_ALL, "logfmt", 0, 0, "logfmt json", "form of a log line" },
    { NULL, "log-prompts", BOOL, AT(log_prompts), S, "false", 0, 0, NULL, "log what users write and get; off for their privacy" },
    { "Measuring", "json", BOOL, AT(json), B | V | Q, "false", 0, 0, NULL, "print one JSON object per line instead of a table" },
    { NULL, "chunks", INT, AT(chunks), TEXT, "0", 0, 1e9, NULL, "stop after this many chunks of text; 0: all" },
    { NULL, "separator", STR, AT(separator), TEXT, "", 0, 0, NULL, "a mark that parts the documents of the text; each begins with BOS, or where the vocabulary knows the mark with that; empty: it is one document" },
    { NULL, "repeat", INT, AT(repeat), B, "3", 1, 1000, NULL, "runs of each test; the median counts" },
    { NULL, "prompts", STR, AT(tests), SPEED, "128,512", 0, 0, NULL, "prompt lengths for prefill, comma separated; empty: none" },
    { NULL, "batches", STR, AT(batches), SPEED, "1,2,4,8", 0, 0, NULL, "numbers of parallel sequences for decode" },
    { NULL, "depths", STR, AT(depths), SPEED, "0", 0, 0, NULL, "tokens already in the cache for decode" },
    { NULL, "kv", BOOL, AT(kv), B, "false", 0, 0, NULL, "measure a pressed KV cache instead: prefill, pressing, decode" },
    { NULL, "policies", STR, AT(policies), PRESSED, "", 0, 0, NULL, "policies, comma separated, each as NAME or NAME:option=value,...; empty: every one that presses" },
    { NULL, "budgets", STR, AT(budgets), PRESSED, "", 0, 0, NULL, "slots per KV head, comma separated; empty: 64,128,256,512 (bench: 256)" },
    { NULL, "length", INT, AT(length), PRESSED, "0", 0, 1 << 20, NULL, "tokens of a prompt; 0: 2048 (bench: 8192)" },
    { NULL, "tasks", STR, AT(tasks), JUDGED, "", 0, 0, NULL, "tasks, comma separated; empty: all" },
    { NULL, "samples", INT, AT(samples), TASKS | JUDGED, "200", 1, 1000000, NULL, "eval kv: samples of each task; eval tasks: how many of the file" },
    { NULL, "seed", INT, AT(seed), TASKS | JUDGED, "1", 0, 1e15, NULL, "of the samples" },
    { NULL, "text", STR, AT(text), JUDGED, "gutenberg", 0, 0, NULL, "texts, comma separated: files, folders of .txt files, or recipes" },
    { NULL, "base", STR, AT(base), JUDGED, "", 0, 0, NULL, "of --policies, those that the others are compared with" },
    { NULL, "out", STR, AT(out), JUDGED, "eval-kv", 0, 0, NULL, "folder of the results; what is there already is not measured again" },
    { "Quantizing", "codec", STR, AT(codec), Q, "auto", 0, 0, NULL, "form of the matrices in the layers; with --bits or --size the family that their forms are chosen from, as trellis; auto: trellis2, or trellis" },
    { NULL, "bits", NUM, AT(bits), Q, "0", 0, 32, NULL, "most bits a weight in the mean over the layers' matrices, scales included; 0: --codec is one form for all" },
    { NULL, "size", BYTES, AT(size), Q, "0", 0, 1e15, NULL, "instead of --bits: most bytes that all tensors of the folder may take, head and norms included, as 40M or 2G" },
    { NULL, "pareto", STR, AT(pareto), Q, "", 0, 0, NULL, "instead of --bits: budgets in bits a weight, comma separated, as 2.2,2.5,3; no model is written, OUT gets a table and a plot of what each costs" },
    { NULL, "allocate", STR, AT(allocate), Q, "dp", 0, 0, "dp uniform hawq baq lgreco evopress", "who gets how many of them; dp: as noise in each matrix changes the outputs, exactly solved; hawq: the same by the trace of the Hessian and rounded weights; baq: all lose the same part of their outputs by a formula; lgreco: as pressed matrices lose of theirs, exactly solved; evopress: generations of choices judged by the outputs; uniform: the widest form that fits for all" },
    { NULL, "generations", INT, AT(generations), Q, "50", 1, 1 << 20, NULL, "of --allocate evopress" },
    { NULL, "forms", STR, AT(forms), Q, "", 0, 0, NULL, "folder that keeps the matrices pressed to every form of the family, which lgreco, evopress and --pareto need, for other runs; empty: OUT.forms, removed at the end" },
    { NULL, "head", STR, AT(head), Q, "auto", 0, 0, NULL, "form of the embedding and the head; auto: q8, or f16 with aqlm, whose folders other programs read too" },
    { NULL, "calibrate", STR, AT(calibrate), Q, "gutenberg", 0, 0, NULL, "texts that show what the matrices read, comma separated: files, folders of .txt files, or recipes" },
    { NULL, "align", STR, AT(align), Q, "", 0, 0, NULL, "texts, as for --calibrate: of its sequences those that are most like these, by how well both are compressed together; empty: evenly spread" },
    { NULL, "tokens", INT, AT(tokens), Q, "32768", 2, 1 << 28, NULL, "tokens that are taken of --calibrate" },
    { NULL, "context", INT, AT(context), Q, "512", 2, 1 << 22, NULL, "tokens of a sequence; at most what the model was trained for" },
    { NULL, "damp", NUM, AT(damp), Q, "0.01", 0, 1, NULL, "part of the mean of the diagonal that is added to it in the second moments" },
    { NULL, "fisher", INT, AT(fisher), Q, "8192", 0, 1 << 28, NULL, "of forms with lowrank: tokens of --calibrate whose gradients say how much each row counts when factors are found, with all matrices in f32 beside; 0: rows count alike" },
    { NULL, "tune", INT, AT(tune), Q, "0", 0, 1 << 20, NULL, "steps of tuning once all is pressed: scales of rows, norms and biases move until the outputs are as near the model's as they get; 0: none" },
    { NULL, "tune-codes", INT, AT(tune_codes), Q, "0", 0, 1 << 20, NULL, "steps that move codes after --tune, of forms whose codes stand alone (planes, aqlm), towards the model's outputs; 0: none" },
    { NULL, "force", BOOL, AT(force), Q, "false", 0, 0, NULL, "start over where another run was not finished" },
    { "Chat", "system", STR, AT(system), C, "", 0, 0, NULL, "system prompt" },
    { NULL, "temperature", NUM, AT(temperature), C, "0.7", 0, 2, NULL, "0: always the most likely token" },
    { NULL, "top-p", NUM, AT(top_p), C, "0.95", 0.01, 1, NULL, "sample from the smallest set with this mass" },
    { NULL, "max-tokens", INT, AT(max_tokens), C, "1024", 1, 1 << 22, NULL, "longest answer" },
};
/* clang-format on */
enum { N_OPTIONS = sizeof table / sizeof table[0] };

static const struct option *find(const char *name, size_t len)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

static bool has_word(const char *words, const char *w)
{
    size_t n = strlen(w);
    for (const char *p = words; n > 0 && (p = strstr(p, w)) != NULL; p += n)
        if ((p == words || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0))
            return true;
    return false;
}

static int parse_number(const struct option *o, const char *text, double *out, struct err *e)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (o->kind == BYTES && *end != 0) {
        static const char unit[] = "KMGT";
        const char *u = strchr(unit, *end >= 'a' ? *end - 32 : *end);
        if (u != NULL) {
            for (long i = u - unit; i >= 0; i--)
                v *= 1024;
            end++;
            end += strcmp(end, "iB") == 0 ? 2 : strcmp(end, "B") == 0 ? 1 : 0;
        }
    }
    if (errno != 0 || end == text || *end != 0 || !(v >= o->min && v <= o->max) ||
        (o->kind != NUM && v != (double)(int64_t)v))
        return err_set(e, ERR_INVALID, "%s: \"%s\" is not %s from %.15g to %.15g", o->name, text,
                       o->kind == NUM     ? "a number"
                       : o->kind == BYTES ? "a size (as 512M or 2G)"
                                          : "a whole number",
                       o->min, o->max);
    *out = v;
    return 0;
}

static int set(struct config *c, const struct option *o, const char *text, struct err *e)
{
    char *field = (char *)c + o->at;
    double v = 0;
    if (o->words != NULL && !has_word(o->words, text))
        return err_set(e, ERR_INVALID, "%s: \"%s\" is not one of: %s", o->name, text, o->words);
    if (o->kind == STR) {
        char *copy = mem_strdup(text);
        if (copy == NULL)
            return err_set(e, ERR_NOMEM, "no memory for options");
        mem_free(*(char **)(void *)field);
        *(char **)(void *)field = copy;
        return 0;
    }
    if (o->kind == BOOL) {
        if (!has_word("true false yes no on off 1 0", text))
            return err_set(e, ERR_INVALID, "%s: \"%s\" is neither true nor false", o->name, text);
        *(bool *)(void *)field = has_word("true yes on 1", text);
        return 0;
    }
    TRY(parse_number(o, text, &v, e));
    if (o->kind == NUM)
        *(double *)(void *)field = v;
    else
        *(int64_t *)(void *)field = (int64_t)v;
    return 0;
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

/* An option without a value, as "alias:" or "alias: null". */
static bool is_null(const yaml_node_t *v)
{
    return v->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (v->data.scalar.length == 0 ||
            has_word("null Null NULL ~", (const char *)v->data.scalar.value));
}

static void command_names(unsigned commands, struct buf *out)
{
    static const struct {
        unsigned bits;
        const char *name;
    } cmd[] = { { S, "serve" },
                { C, "chat" },
                { B, "bench" },
                { SPEED, "bench without --kv" },
                { CONFIG_BENCH_KV, "bench --kv" },
                { V, "eval" },
                { CONFIG_EVAL_PPL, "eval ppl" },
                { CONFIG_EVAL_KL, "eval kl" },
                { TASKS, "eval tasks" },
                { JUDGED, "eval kv" },
                { Q, "quantize" } };
    const char *sep = "";
    for (size_t i = 0; i < sizeof cmd / sizeof cmd[0]; i++) {
        if ((commands & cmd[i].bits) != cmd[i].bits)
            continue;
        buf_addf(out, "%s%s", sep, cmd[i].name);
        commands &= ~cmd[i].bits;
        sep = ", ";
    }
}

/* An option that nothing would read is a mistake, and not kept quiet about. */
static int foreign(const struct option *o, enum config_command command, struct err *e)
{
    struct buf here;
    struct buf there;
    buf_init(&here, 256);
    buf_init(&there, 256);
    command_names(command, &here);
    command_names(o->commands, &there);
    err_set(e, ERR_INVALID, "%s has no option \"%s\"; these have: %s", buf_str(&here), o->name,
            buf_str(&there));
    buf_free(&here);
    buf_free(&there);
    return ERR_INVALID;
}

struct file {
    struct config *c;
    enum config_command command;
};

static int set_pair(const struct file *f, const yaml_node_t *k, const yaml_node_t *v, struct err *e)
{
    unsigned long line = k->start_mark.line + 1;
    if (k->type != YAML_SCALAR_NODE || v->type != YAML_SCALAR_NODE)
        return err_set(e, ERR_FORMAT, "line %lu: \"option: value\" is expected", line);
    const char *name = (const char *)k->data.scalar.value;
    const struct option *o = find(name, k->data.scalar.length);
    if (o == NULL)
        return err_set(e, ERR_INVALID, "line %lu: there is no option \"%s\"; --help lists them",
                       line, name);
    int rc = 0;
    if ((o->commands & f->command) == 0)
        rc = foreign(o, f->command, e);
    else if (!is_null(v))
        rc = set(f->c, o, (const char *)v->data.scalar.value, e);
    return rc < 0 ? err_prefix(e, "line %lu", line) : 0;
}

/* YAML has each key of a mapping once, which its parser leaves to us. */
static int check_once(yaml_document_t *doc, const yaml_node_pair_t *p, struct err *e)
{
    const yaml_node_t *key = yaml_document_get_node(doc, p->key);
    const yaml_node_pair_t *q = yaml_document_get_root_node(doc)->data.mapping.pairs.start;
    for (; q < p && key->type == YAML_SCALAR_NODE; q++) {
        const yaml_node_t *other = yaml_document_get_node(doc, q->key);
        if (other->type == YAML_SCALAR_NODE && strcmp((const char *)other->data.scalar.value,
                                                      (const char *)key->data.scalar.value) == 0)
            return err_set(e, ERR_FORMAT, "line %lu: %s is there twice",
                           (unsigned long)key->start_mark.line + 1,
                           (const char *)key->data.scalar.value);
    }
    return 0;
}

static int read_document(const struct file *f, yaml_document_t *doc, struct err *e)
{
    const yaml_node_t *root = yaml_document_get_root_node(doc);
    if (root == NULL)
        return 0;
    if (root->type != YAML_MAPPING_NODE)
        return err_set(e, ERR_FORMAT, "a mapping of options to values is expected");
    for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top;
         p++) {
        TRY(check_once(doc, p, e));
        TRY(set_pair(f, yaml_document_get_node(doc, p->key), yaml_document_get_node(doc, p->value),
                     e));
    }
    return 0;
}

/* The next document, to be deleted; an empty one behind the last. */
static int load(yaml_parser_t *parser, yaml_document_t *doc, struct err *e)
{
    if (yaml_parser_load(parser, doc))
        return 0;
    return err_set(e, ERR_FORMAT, "line %lu: not YAML: %s",
                   (unsigned long)parser->problem_mark.line + 1,
                   parser->problem != NULL ? parser->problem : "unreadable");
}

/* What stands behind a second "---" would not be kept to, an api-key for one. */
static int check_end(yaml_parser_t *parser, struct err *e)
{
    yaml_document_t doc;
    TRY(load(parser, &doc, e));
    const yaml_node_t *root = yaml_document_get_root_node(&doc);
    int rc = root == NULL ? 0
                          : err_set(e, ERR_FORMAT, "line %lu: the file has more than one document",
                                    (unsigned long)root->start_mark.line + 1);
    yaml_document_delete(&doc);
    return rc;
}

int config_read(struct config *c, enum config_command command, const char *text, size_t n,
                struct err *e)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    if (!yaml_parser_initialize(&parser))
        return err_set(e, ERR_NOMEM, "no memory to read the config");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    int rc = load(&parser, &doc, e);
    if (rc == 0) {
        rc = read_document(&(struct file){ c, command }, &doc, e);
        yaml_document_delete(&doc);
    }
    if (rc == 0)
        rc = check_end(&parser, e);
    yaml_parser_delete(&parser);
    return rc;
}

/* What bench and eval measure says what a file may have, so they read it twice. */
static int read_file(struct config *c, enum config_command command, const char *path, struct err *e)
{
    struct buf b;
    struct stat st;
    if ((command & (B | V)) != 0 && stat(path, &st) == 0 && !S_ISREG(st.st_mode) &&
        !S_ISDIR(st.st_mode))
        return err_set(e, ERR_INVALID,
                       "config: %s is read twice here: give a regular file, not a pipe", path);
    buf_init(&b, 1 << 20);
    int rc = buf_read_file(&b, path, e);
    if (rc == 0 && (rc = config_read(c, command, buf_str(&b), b.len, e)) < 0)
        err_prefix(e, "%s", path);
    buf_free(&b);
    return rc;
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

struct args {
    struct config *c;
    enum config_command command;
    int argc;
    char **argv;
};

/* One "--name value", "--name=value", "--flag" or "--no-flag" at argv[i]; returns how many words it took. */
static int take_option(const struct args *a, int i, struct err *e)
{
    const char *name = a->argv[i] + 2;
    size_t len = strcspn(name, "=");
    const char *value = name[len] == '=' ? name + len + 1 : NULL;
    const struct option *o = find(name, len);
    bool negated = o == NULL && value == NULL && strncmp(name, "no-", 3) == 0;
    if (negated)
        o = find(name + 3, len - 3);
    if (o != NULL && (o->commands & a->command) == 0)
        return foreign(o, a->command, e);
    if (o == NULL || (negated && o->kind != BOOL))
        return err_set(e, ERR_INVALID, "there is no option --%.*s here; --help lists them",
                       (int)len, name);
    if (o->kind == BOOL && value == NULL) {
        TRY(set(a->c, o, negated ? "false" : "true", e));
        return 1;
    }
    if (value != NULL) {
        TRY(set(a->c, o, value, e));
        return 1;
    }
    if (i + 1 >= a->argc)
        return err_set(e, ERR_INVALID, "--%s needs a value", o->name);
    TRY(set(a->c, o, a->argv[i + 1], e));
    return 2;
}

static int take_word(struct config *c, const char *w, struct err *e)
{
    if (w[0] == '-')
        return err_set(e, ERR_INVALID, "there is no option %s here; --help lists them", w);
    if (c->n_words == (int)(sizeof c->word / sizeof c->word[0]))
        return err_set(e, ERR_INVALID, "\"%s\" is one word too many", w);
    c->word[c->n_words++] = w;
    return 0;
}

static int take_args(const struct args *a, struct err *e)
{
    for (int i = 0; i < a->argc;) {
        const char *w = a->argv[i];
        int n = 1;
        if (strcmp(w, "--help") == 0 || strcmp(w, "-h") == 0)
            a->c->help = true;
        else if (strcmp(w, "--config") == 0)
            n = 2; /* read before the rest */
        else if (strncmp(w, "--config=", 9) == 0)
            n = 1;
        else if (strncmp(w, "--", 2) == 0)
            n = take_option(a, i, e);
        else
            n = take_word(a->c, w, e) < 0 ? ERR_INVALID : 1;
        if (n < 0)
            return n;
        i += n;
    }
    return 0;
}

/* *path stays NULL where no --config is given. */
static int config_path(const struct args *a, const char **path, struct err *e)
{
    for (int i = 0; i < a->argc; i++) {
        bool joined = strncmp(a->argv[i], "--config=", 9) == 0;
        if (!joined && strcmp(a->argv[i], "--config") != 0)
            continue;
        const char *value = joined ? a->argv[i] + 9 : i + 1 < a->argc ? a->argv[++i] : "";
        if (value[0] == 0)
            return err_set(e, ERR_INVALID, "--config needs a value");
        if (*path != NULL)
            return err_set(e, ERR_INVALID, "--config is given twice: %s and %s", *path, value);
        *path = value;
    }
    return 0;
}

int config_parse(struct config *c, enum config_command command, int argc, char **argv,
                 struct err *e)
{
    struct args a = { c, command, argc, argv };
    *c = (struct config){ 0 };
    for (int i = 0; i < N_OPTIONS; i++)
        TRY(set(c, &table[i], table[i].def, e));
    const char *path = NULL;
    TRY(config_path(&a, &path, e));
    if (path != NULL)
        TRY(read_file(c, command, path, e));
    /* After the file, where the sample has an empty key; and one left empty by a script takes no key away. */
    const char *key = getenv("WRING_API_KEY");
    if (key != NULL && key[0] != 0)
        TRY(set(c, find("api-key", 7), key, e));
    return take_args(&a, e);
}

void config_free(struct config *c)
{
    for (int i = 0; i < N_OPTIONS; i++) {
        if (table[i].kind != STR)
            continue;
        char **s = (char **)(void *)((char *)c + table[i].at);
        mem_free(*s);
        *s = NULL;
    }
}

/* ---- the table as text ------------------------------------------------------------------------------------------- */

static const char *value_word(const struct option *o)
{
    if (o->words != NULL)
        return o->words;
    static const char *const word[] = { "TEXT", "N", "X", "SIZE", "" };
    return word[o->kind];
}

int config_help(enum config_command command, struct buf *out)
{
    const char *group = NULL;
    const char *shown = NULL;
    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *o = &table[i];
        group = o->group != NULL ? o->group : group;
        if ((o->commands & command) == 0)
            continue;
        if (group != shown)
            buf_addf(out, "\n%s\n", group);
        shown = group;
        char left[96];
        if (o->kind == BOOL)
            snprintf(left, sizeof left, "--[no-]%s", o->name);
        else
            snprintf(left, sizeof left, "--%s %s", o->name, value_word(o));
        buf_addf(out, "  %-36s %s", left, o->help);
        if (o->def[0] != 0)
            buf_addf(out, " [%s]", o->def);
        if ((o->commands & command) != command) {
            buf_adds(out, " (");
            command_names(o->commands & command, out);
            buf_addc(out, ')');
        }
        buf_addc(out, '\n');
    }
    buf_adds(out, "\n  --config FILE                        read options from a YAML file first\n");
    return out->bad;
}

int config_sample(struct buf *out)
{
    buf_adds(
        out,
        "# Every option of `wring serve` with its default. Use: wring serve MODEL --config FILE\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *o = &table[i];
        if ((o->commands & CONFIG_SERVE) == 0)
            continue;
        if (o->group != NULL)
            buf_addf(out, "\n# ---- %s\n", o->group);
        buf_addf(out, "\n# %s", o->help);
        if (o->words != NULL)
            buf_addf(out, " (%s)", o->words);
        bool quote = o->kind == STR && o->def[0] == 0;
        buf_addf(out, "\n%s: %s\n", o->name, quote ? "\"\"" : o->def);
    }
    return out->bad;
}

int config_markdown(struct buf *out)
{
    buf_adds(out, "| option | default | commands | what it does |\n|---|---|---|---|\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const struct option *o = &table[i];
        const char *tick = o->def[0] != 0 ? "`" : "";
        buf_addf(out, "| `--%s` | %s%s%s | ", o->name, tick, o->def, tick);
        command_names(o->commands, out);
        buf_addf(out, " | %s", o->help);
        if (o->words != NULL)
            buf_addf(out, " (%s)", o->words);
        buf_adds(out, " |\n");
    }
    return out->bad;
}

int config_data_home(char *out, size_t n, struct err *e)
{
    const char *data = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");
    int len;
    if (data != NULL && data[0] == '/')
        len = snprintf(out, n, "%s", data);
    else if (home != NULL && home[0] == '/')
        len = snprintf(out, n, "%s/.local/share", home);
    else
        return err_set(e, ERR_NOTFOUND,
                       "neither XDG_DATA_HOME nor HOME is set to an absolute path");
    if (len < 0 || (size_t)len >= n)
        return err_set(e, ERR_LIMIT, "the path of the data folder is too long");
    return 0;
}
