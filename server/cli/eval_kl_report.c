/* What wring eval kl tells: for people one measure a line, the model beside the reference; as JSON one object. */
#include <math.h>

#include "server/cli/eval_kl.h"

enum { LINES = 12, NUMBERS = 3 }; /* the model's, its error, the reference's */

struct line {
    const char *title;
    int digits;
    const char *key[NUMBERS]; /* the JSON's; NULL: there is no such number */
    double value[NUMBERS];
};

static int print_json(const struct line *line)
{
    struct table_col col[LINES * NUMBERS];
    struct table *t;
    int n = 0;
    for (int i = 0; i < LINES; i++)
        for (int k = 0; k < NUMBERS; k++)
            if (line[i].key[k] != NULL)
                col[n++] = (struct table_col){ .key = line[i].key[k] };
    if (table_open(&t, col, n) < 0)
        return cli_no_table();
    for (int i = 0; i < LINES; i++)
        for (int k = 0; k < NUMBERS; k++)
            if (line[i].key[k] != NULL)
                table_num(t, line[i].value[k], line[i].digits);
    return cli_table(t, true);
}

static int print_lines(const struct line *line)
{
    static const struct table_col col[] = {
        { NULL, "" }, { NULL, "model" }, { NULL, "+/-" }, { NULL, "reference" }
    };
    struct table *t;
    if (table_open(&t, col, sizeof col / sizeof *col) < 0)
        return cli_no_table();
    for (int i = 0; i < LINES; i++) {
        table_str(t, line[i].title);
        for (int k = 0; k < NUMBERS; k++)
            table_num(t, line[i].key[k] != NULL ? line[i].value[k] : NAN, line[i].digits);
    }
    return cli_table(t, false);
}

int kl_print(const struct kl_result *r, bool json)
{
    const struct kl_side *m = &r->model;
    const struct kl_side *f = &r->ref;
    double positions = (double)r->n_chunks * r->ctx;
    const struct line line[LINES] = {
        { "KL, nats a token", 5, { "kl", "kl_err" }, { r->kl.mean, r->kl.error } },
        { "KL, 95th percentile", 5, { "kl95" }, { r->kl95 } },
        { "equal first choices", 4, { "top1", "top1_err" }, { r->top1.mean, r->top1.error } },
        { "perplexity", 4, { "ppl", NULL, "ppl_ref" }, { m->ppl, 0, f->ppl } },
        { "ratio of perplexities",
          4,
          { "ppl_ratio", "ppl_ratio_err" },
          { r->ratio.mean, r->ratio.error } },
        { "bits per byte of text",
          4,
          { "byte_bits", NULL, "byte_bits_ref" },
          { m->byte_bits, 0, f->byte_bits } },
        { "bits per weight, layers",
          3,
          { "layer_bits", NULL, "layer_bits_ref" },
          { m->layer_bits, 0, f->layer_bits } },
        { "bits per weight, all", 3, { "bits", NULL, "bits_ref" }, { m->bits, 0, f->bits } },
        { "bytes of weights",
          0,
          { "bytes", NULL, "bytes_ref" },
          { (double)m->bytes, 0, (double)f->bytes } },
        { "positions", 0, { "positions" }, { positions } },
        { "chunks", 0, { "chunks" }, { r->n_chunks } },
        { "tokens a chunk", 0, { "ctx" }, { r->ctx } },
    };
    return json ? print_json(line) : print_lines(line);
}
