#include "quant/codec.h"

#include <string.h>

#include "quant/input.h"
#include "quant/lowrank/lowrank.h"
#include "quant/rotate.h"
#include "server/base/mem.h"

extern const struct codec codec_dense, codec_q8, codec_q4, codec_trellis, codec_planes, codec_pvq,
    codec_aqlm, codec_lowrank;

const struct codec *const codec_list[] = { &codec_dense,   &codec_q8,      &codec_q4,
                                           &codec_trellis, &codec_planes,  &codec_pvq,
                                           &codec_aqlm,    &codec_lowrank, NULL };

const char *codec_names(void)
{
    return "auto, f32, f16, bf16, q8, q4, trellis2, trellis3, trellis4, "
           "planes1, planes2, planes3, planes4, planes5, planes6, planes7, planes8, pvq2, pvq3, "
           "pvq4";
}

/* NULL: no codec knows the word. */
static const struct codec *codec_of(const char *word)
{
    for (int i = 0; codec_list[i] != NULL; i++)
        if (codec_list[i]->knows != NULL && codec_list[i]->knows(word))
            return codec_list[i];
    return NULL;
}

static bool known(const char *word)
{
    return codec_of(word) != NULL || strcmp(word, "auto") == 0;
}

const char *weight_head(const char *word)
{
    const struct codec *c = codec_of(word);
    return c != NULL && c->head != NULL ? c->head : "q8";
}

/* The best member for the word (NULL: without loss only); false when none takes it. */
static bool choose(struct weight *w, const char *word, enum dtype from)
{
    int best = 0;
    for (int i = 0; codec_list[i] != NULL; i++) {
        int variant = 0;
        int good = codec_list[i]->fits(word, from, w->rows, w->cols, &variant);
        if (good > best && (word != NULL || good == 2)) {
            best = good;
            w->codec = codec_list[i];
            w->variant = variant;
        }
    }
    return best > 0;
}

/* The planes of a weight whose codec, variant and shape are set. */
static int open_planes(struct weight *w, struct be *be, bool int8_ok, struct err *e)
{
    int rows = w->rows;
    int cols = w->cols;
    if (!be->host && w->codec->cuda == NULL)
        return err_set(e, ERR_UNSUPPORTED, "weights of the codec %s do not run on %s yet",
                       w->codec->name, be->device);
    size_t bytes[CODEC_PLANES] = { 0 };
    w->codec->size(w, bytes);
    for (int i = 0; i < CODEC_PLANES; i++) {
        if (bytes[i] == 0)
            continue;
        w->plane[i] = be->ops->alloc(be, bytes[i]);
        if (w->plane[i] == NULL) {
            weight_close(w, be);
            return err_set(e, ERR_NOMEM, "no memory for %d x %d weights (%zu bytes) on %s", rows,
                           cols, bytes[i], be->device);
        }
        w->bytes[i] = bytes[i];
    }
    if (!be->host)
        w->prep = int8_ok ? PREP_BF16 : PREP_BF16X3;
    else if (w->codec->prepare != NULL)
        w->prep = w->codec->prepare(w, be->isa, int8_ok);
    else
        w->prep = int8_ok ? PREP_I8 : PREP_F32;
    return 0;
}

/* Codec and variant of a weight whose shape is set. more: words that besides codec_names() are worth a mention. */
static int choose_word(struct weight *w, const char *word, enum dtype from, const char *more,
                       struct err *e)
{
    if (!known(word))
        return err_set(e, ERR_INVALID, "\"%s\" is no form of weights; known are %s%s", word,
                       codec_names(), more);
    bool is_auto = strcmp(word, "auto") == 0;
    if (!choose(w, is_auto ? NULL : word, from) && !choose(w, is_auto ? "q8" : word, from) &&
        !choose(w, "f32", from))
        return err_set(e, ERR_UNSUPPORTED, "no codec takes %d x %d of %s", w->rows, w->cols,
                       dtype_name(from));
    return 0;
}

int weight_open(struct weight *w, struct be *be, const char *word, bool int8_ok, enum dtype from,
                int rows, int cols, struct err *e)
{
    *w = (struct weight){ .rows = rows, .cols = cols };
    TRY(choose_word(w, word, from, "", e));
    if (w->codec->encode == NULL) {
        w->codec = NULL;
        return err_set(e, ERR_UNSUPPORTED,
                       "models come in the form %s; while one is loaded nothing is encoded to it",
                       word);
    }
    return open_planes(w, be, int8_ok, e);
}

int weight_open_press(struct weight *w, struct be *be, const char *word, int rows, int cols,
                      struct err *e)
{
    *w = (struct weight){ .rows = rows, .cols = cols };
    TRY(choose_word(w, word, DT_F32, ", aqlm2x8g8, lowrank16+trellis2", e));
    if (w->codec->encode == NULL && !w->codec->pressable(w)) {
        w->codec = NULL;
        return err_set(e, ERR_UNSUPPORTED,
                       "models come in the form %s; to learn it would take too long here", word);
    }
    return open_planes(w, be, false, e);
}

int weight_set_form(struct weight *w, const char *form, int rows, int cols, struct err *e)
{
    *w = (struct weight){ .rows = rows, .cols = cols };
    for (int i = 0; codec_list[i] != NULL; i++) {
        const struct codec *c = codec_list[i];
        if (c->fits(form, DT_F32, rows, cols, &w->variant) > 0) {
            w->codec = c;
            if (strcmp(c->form(w), form) == 0)
                return 0;
        }
    }
    w->codec = NULL;
    if (!known(form))
        return err_set(e, ERR_UNSUPPORTED, "\"%s\" is no form of weights; known are %s", form,
                       codec_names());
    return err_set(e, ERR_UNSUPPORTED, "the form %s does not fit %d x %d", form, rows, cols);
}

int weight_open_form(struct weight *w, struct be *be, const char *form, bool int8_ok, int rows,
                     int cols, struct err *e)
{
    TRY(weight_set_form(w, form, rows, cols, e));
    return open_planes(w, be, int8_ok, e);
}

void weight_close(struct weight *w, struct be *be)
{
    for (int i = 0; i < CODEC_PLANES; i++)
        if (w->plane[i] != NULL)
            be->ops->free(be, w->plane[i], w->bytes[i]);
    *w = (struct weight){ 0 };
}

int codec_step(const struct codec *c)
{
    return (c->step > 0 ? c->step : 1) * CODEC_PANEL;
}

const struct codec *weight_coder(const struct weight *w)
{
    return w->codec->split != NULL ? w->codec->split(w).q.codec : w->codec;
}

/* One thread, wherever it is called from, so the level is the plain one that all agree with. */
static void to_codes(const struct weight *w, const float *src, float *dst, int n)
{
    rotate_rows(CPU_REF, src, dst, n, w->cols);
}

void weight_fill(struct weight *w, int row0, int n, enum dtype type, const void *src,
                 float *scratch)
{
    if (w->codec->take != NULL && w->codec->take(w, row0, n, type, src))
        return;
    dtype_decode(type, src, scratch, (size_t)n * (size_t)w->cols);
    if (weight_coder(w)->rotated)
        to_codes(w, scratch, scratch, n);
    w->codec->encode(w, row0, n, scratch);
}

int weight_plan(struct weight *w, const float *src, const float *share, float *scratch,
                enum cpu_isa isa, struct err *e)
{
    size_t cols = (size_t)w->cols;
    if (w->codec->plan == NULL)
        return 0;
    if (weight_coder(w)->rotated)
        to_codes(w, src, scratch, w->rows);
    else
        memcpy(scratch, src, (size_t)w->rows * cols * sizeof *scratch);
    for (size_t i = 0; share != NULL && i < (size_t)w->rows * cols; i++)
        scratch[i] *= share[i / cols];
    return w->codec->plan(w, scratch, share, isa, e);
}

int weight_press(struct weight *w, int row0, int n, const float *src, float *scratch,
                 const struct moments *m, struct err *e)
{
    if (weight_coder(w)->rotated) {
        to_codes(w, src, scratch, n);
        src = scratch;
    }
    bool planned = w->codec->plan != NULL;
    if (w->codec->press != NULL && (m != NULL || planned))
        return w->codec->press(w, row0, n, src, m, e);
    w->codec->encode(w, row0, n, src);
    return 0;
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

int weight_parts(const struct weight *w, struct codec_part out[CODEC_PARTS])
{
    if (w->codec->parts != NULL)
        return w->codec->parts(w, out);
    size_t bytes[CODEC_PLANES] = { 0 };
    w->codec->size(w, bytes);
    int n = 0;
    for (int i = 0; i < CODEC_PLANES; i++)
        if (bytes[i] > 0)
            out[n++] =
                (struct codec_part){ w->codec->plane_name[i], DT_U8, 1, { (int64_t)bytes[i] } };
    return n;
}

size_t codec_part_bytes(const struct codec_part *p)
{
    int64_t n = 1;
    for (int i = 0; i < p->n_dims; i++)
        n *= p->dim[i];
    return (size_t)n * (size_t)dtype_block_bytes(p->type);
}

/* The plane that part i is. */
static void *plane_of(const struct weight *w, int part)
{
    for (int i = 0; i < CODEC_PLANES; i++)
        if (w->bytes[i] > 0 && part-- == 0)
            return w->plane[i];
    return NULL;
}

void weight_put(struct weight *w, int part, size_t offset, size_t n, const void *src)
{
    if (w->codec->put != NULL)
        w->codec->put(w, part, offset, n, src);
    else
        memcpy((char *)plane_of(w, part) + offset, src, n);
}

void weight_get(const struct weight *w, int part, size_t offset, size_t n, void *dst)
{
    if (w->codec->get != NULL)
        w->codec->get(w, part, offset, n, dst);
    else
        memcpy(dst, (const char *)plane_of(w, part) + offset, n);
}

/* ---- staging ----------------------------------------------------------------------------------------------------- */

int weight_stage_open(struct weight *stage, const struct weight *w, int n, struct err *e)
{
    size_t bytes[CODEC_PLANES] = { 0 };
    *stage = (struct weight){ 0 };
    if (w->codec->split != NULL && n != w->rows)
        return err_set(e, ERR_UNSUPPORTED, "weights of the form %s are not made by rows",
                       weight_form(w));
    *stage = (struct weight){
        .codec = w->codec, .rows = n, .cols = w->cols, .variant = w->variant, .prep = w->prep
    };
    w->codec->size(stage, bytes);
    for (int i = 0; i < CODEC_PLANES; i++) {
        if (bytes[i] == 0)
            continue;
        stage->plane[i] = mem_zalloc(1, bytes[i]);
        if (stage->plane[i] == NULL) {
            weight_stage_close(stage);
            return err_set(e, ERR_NOMEM, "no memory to press %d rows (%zu bytes)", n, bytes[i]);
        }
        stage->bytes[i] = bytes[i];
    }
    return 0;
}

void weight_stage_upload(const struct weight *stage, struct weight *w, struct be *be, int row0)
{
    size_t panels = (size_t)weight_panels(stage);
    size_t first = (size_t)(row0 / CODEC_PANEL);
    for (int i = 0; i < CODEC_PLANES; i++)
        if (stage->plane[i] != NULL)
            be->ops->upload(be, (char *)w->plane[i] + stage->bytes[i] / panels * first,
                            stage->plane[i], stage->bytes[i]);
}

void weight_stage_close(struct weight *stage)
{
    for (int i = 0; i < CODEC_PLANES; i++)
        mem_free(stage->plane[i]);
    *stage = (struct weight){ 0 };
}

size_t weight_bytes(const struct weight *w)
{
    size_t sum = 0;
    for (int i = 0; i < CODEC_PLANES; i++)
        sum += w->bytes[i];
    return sum;
}

double weight_bits(const struct weight *w)
{
    return 8.0 * (double)weight_bytes(w) / ((double)w->rows * w->cols);
}

const char *weight_form(const struct weight *w)
{
    return w->codec != NULL ? w->codec->form(w) : "-";
}

/* ---- look-up ----------------------------------------------------------------------------------------------------- */

void weight_row(const struct weight *w, int row, float *dst)
{
    w->codec->decode(w, row, dst);
}

void weight_rescale(struct weight *w, int row, float factor)
{
    w->codec->rescale(w, row, factor);
}

struct rows {
    const struct weight *w;
    const int32_t *id;
    float *x;
};

static void some_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *r = arg;
    (void)i_thread;
    for (int i = first; i < last; i++)
        weight_row(r->w, r->id[i], r->x + (size_t)i * (size_t)r->w->cols);
}

void weight_rows(const struct weight *w, struct be *be, const int32_t *id, int n, float *x)
{
    if (!be->host) {
        w->codec->cuda->rows(be, w, id, n, x);
        if (w->codec->rotated)
            rotate_device_back(be, x, n, w->cols);
        return;
    }
    struct rows r = { w, id, x };
    if (n > 16)
        par_for(be->par, n, 0, some_rows, &r);
    else
        some_rows(&r, 0, n, 0);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* Starting and ending a loop on several threads costs about what one needs to pass over this much. */
enum { ALONE_BYTES = 48 << 10 };

struct product {
    const struct matmul *m;
    struct weight w[MATMUL_MAX];        /* the matrix itself, or q of a sum */
    const struct input *in[MATMUL_MAX]; /* as it is, or rotated */
    int n_m;
    int end[MATMUL_MAX]; /* panels of all matrices up to this one, each filled up to whole units */
    codec_mul *mul[MATMUL_MAX];
    struct lowrank_mul low[MATMUL_MAX]; /* of a sum: the rest of it */
};

static codec_mul *kernel(const struct weight *w, enum cpu_isa isa)
{
    for (int i = (int)isa; i > CPU_REF; i--)
        if (w->codec->cpu[i] != NULL && w->codec->cpu[i]->mul[w->prep] != NULL)
            return w->codec->cpu[i]->mul[w->prep];
    return w->codec->cpu[CPU_REF]->mul[w->prep];
}

static void some_panels(void *arg, int first, int last, int i_thread)
{
    const struct product *p = arg;
    (void)i_thread;
    int start = 0;
    for (int i = 0; i < p->n_m; i++) {
        int a = first > start ? first : start;
        int b = last < p->end[i] ? last : p->end[i];
        const struct matmul *m = &p->m[i];
        if (b > start + weight_panels(m->w))
            b = start + weight_panels(m->w);
        if (a < b) {
            p->mul[i](&p->w[i], p->in[i], m->bias, m->y, (size_t)m->w->rows, a - start, b - start);
            if (m->w->codec->split != NULL)
                lowrank_add(&p->low[i], m->y, a - start, b - start);
        }
        start = p->end[i];
    }
}

/* The input as w wants it; rotated has room for the rotated one, made when the first matrix asks. */
static struct input *input_for(const struct weight *w, struct be *be, struct input *in,
                               struct input *rotated)
{
    if (!w->codec->rotated)
        return in;
    if (rotated->x == NULL)
        rotate_input(be, in, rotated);
    return rotated;
}

/* Plain inputs are prepared before rotated ones, which lie behind them. */
static void prepare_all(struct be *be, struct product *p, struct input *in, struct input *rotated)
{
    for (int i = 0; i < p->n_m; i++)
        if (!p->w[i].codec->rotated)
            input_prepare(in, be, p->w[i].prep);
    for (int i = 0; i < p->n_m; i++) {
        struct input *x = input_for(&p->w[i], be, in, rotated);
        input_prepare(x, be, p->w[i].prep);
        p->in[i] = x;
    }
}

/* What sums make of the input before the loop; their numbers lie behind all preparations. */
static void begin_sums(struct be *be, struct product *p, const struct input *last)
{
    char *room = last->ws + last->ws_used;
    for (int i = 0; i < p->n_m; i++) {
        const struct weight *w = p->m[i].w;
        if (w->codec->split == NULL)
            continue;
        struct weight_sum s = w->codec->split(w);
        room = lowrank_begin(&p->low[i], &s, p->in[i], kernel(&s.a, be->isa), be->par, room);
    }
}

/* Matrices that one kernel can serve go to it together. */
static void matmul_device(struct be *be, const struct product *p)
{
    for (int i = 0, n; i < p->n_m; i += n) {
        const struct weight *a = p->m[i].w;
        for (n = 1; i + n < p->n_m; n++) {
            const struct weight *b = p->m[i + n].w;
            if (b->codec != a->codec || b->variant != a->variant || b->prep != a->prep)
                break;
        }
        a->codec->cuda->mul(be, p->in[i], p->m + i, n);
    }
}

/* Panels of a loop's range: whole units of what every codec multiplies together. */
static int unit_of(const struct matmul *m, int n_m)
{
    int unit = 1;
    for (int i = 0; i < n_m; i++) {
        int step = codec_step(m[i].w->codec) / CODEC_PANEL;
        unit = step > unit ? step : unit;
    }
    return unit;
}

void weight_matmul(struct be *be, struct input *in, const struct matmul *m, int n_m)
{
    struct product p;
    struct input rotated = { 0 };
    int unit = unit_of(m, n_m);
    int total = 0;
    size_t work = 0;
    p.m = m;
    p.n_m = n_m;
    for (int i = 0; i < n_m; i++)
        p.w[i] = m[i].w->codec->split != NULL ? m[i].w->codec->split(m[i].w).q : *m[i].w;
    prepare_all(be, &p, in, &rotated);
    if (!be->host) {
        matmul_device(be, &p);
        return;
    }
    begin_sums(be, &p, rotated.x != NULL ? &rotated : in);
    for (int i = 0; i < n_m; i++) {
        p.mul[i] = kernel(&p.w[i], be->isa);
        p.end[i] = total += (weight_panels(m[i].w) + unit - 1) / unit * unit;
        work += weight_bytes(m[i].w) * (size_t)in->n;
    }
    if (work < ALONE_BYTES) {
        some_panels(&p, 0, total, 0);
        return;
    }
    /* Some ranges a thread, so that a slow one does not keep the others waiting; long enough to stream. */
    int grain = total / (par_threads(be->par) * 6) / unit * unit;
    par_for(be->par, total, grain < unit ? unit : grain, some_panels, &p);
}
