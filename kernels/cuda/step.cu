/* A step: what the host decides comes over in one copy, and decode passes are recorded once and replayed.
 *
 * The copy: all numbers of a be_step are packed into one pinned block and land in one device block. First the arrays whose
 * places depend on the shape alone (below), which recorded kernels point to; then the page tables, which they reach
 * through the be_seq of their sequence:
 *
 *      token[rows] pos[rows] row_seq[rows] out_row[outs] keep[layers][rows] be_seq[layers][seqs] cu_seqs |
 *      page ids, narrow tables ...
 *
 * Recording: launching the 400 kernels of a pass of an 8B model one by one takes a millisecond of the host, a third of
 * the pass itself; one graph takes some microseconds. A pass of one row a sequence is recorded as a CUDA graph when its
 * shape comes for the second time, and replayed from then on; the first time runs as it is, because kernels that the
 * driver has not loaded yet may not be loaded while it records, and many shapes come only once. A shape is the counts,
 * raised to a bucket by rows without effect (no sequence, no logits that anyone reads), and the spans of attention (of the
 * longest context, and of all) in powers of two, and whether any query is kept; everything else is read by the kernels
 * from the device block. So a changed batch needs no new recording.
 * Bytes moved: 4 a page of every layer of every sequence (32 KiB for 8,192 tokens of 32 layers), 100 a row, 8 a span,
 * 16 a row and layer where queries are kept.
 */
#include <string.h>

#include "kernels/cuda/state.cuh"

enum { MAX_GRAPHS = 64, STEP_ALIGN = 16 };

/* What a recorded pass is for. Compared as bytes: zero it first. */
struct shape {
    const void *owner;
    const char *block; /* the device block that its kernels point to */
    int n_rows, n_seqs, n_out, n_layers, max_spans, n_spans, has_keep;
};

struct recorded {
    struct shape shape;
    cudaGraphExec_t exec; /* NULL: seen once */
    uint64_t used;        /* the step that asked for it last */
};

struct cu_graphs {
    struct recorded list[MAX_GRAPHS];
    int n;
    uint64_t steps;
    char *block, *staged; /* device, pinned host: `room` bytes each */
    size_t room;
    struct recorded *recording; /* the pass under way; NULL: it is not recorded */
};

/* ---- spans ------------------------------------------------------------------------------------------------------- */

static int most_narrow(const struct be_seq *q, int n_kv_heads)
{
    int most = 0;
    for (int h = 0; q->kv.narrow != NULL && h < n_kv_heads; h++)
        most = q->kv.n_narrow[h] > most ? q->kv.n_narrow[h] : most;
    return most;
}

static int spans_of(int first, int last)
{
    return last > first ? (last - 1) / ATTEND_SPAN - first / ATTEND_SPAN + 1 : 0;
}

/* The spans that the rows of sequence i see, most over all layers. */
static int seq_spans(const struct be_step *s, int i)
{
    int most = 0;
    for (int l = 0; l < s->n_layers; l++) {
        const struct be_seq *q = &s->seqs[(size_t)l * (size_t)s->n_seqs + (size_t)i];
        int spans = spans_of(0, most_narrow(q, s->n_kv_heads)) +
                    spans_of(q->kv.wide_pos0, q->pos0 + q->n_rows);
        most = q->n_rows > 0 && spans > most ? spans : most;
    }
    return most;
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* Writes into the staging block, or only counts while base is NULL. Addresses are those on the device. */
struct packer {
    char *base, *device;
    size_t used;
};

static void *pack(struct packer *p, size_t bytes, void **device)
{
    size_t at = (p->used + STEP_ALIGN - 1) / STEP_ALIGN * STEP_ALIGN;
    p->used = at + bytes;
    *device = p->device + at;
    return p->base != NULL ? p->base + at : NULL;
}

static const int32_t *pack_ints(struct packer *p, const int32_t *src, int n, int n_room, int fill)
{
    void *device;
    int32_t *dst = (int32_t *)pack(p, (size_t)n_room * sizeof *dst, &device);
    for (int i = 0; dst != NULL && i < n_room; i++)
        dst[i] = i < n ? src[i] : fill;
    return (const int32_t *)device;
}

/* The tables of one sequence in one layer. */
static void pack_view(struct packer *p, struct be_seq *q, int n_kv_heads, int narrow_slots)
{
    struct kv_view *v = &q->kv;
    int pages = q->n_rows > 0 ? pages_of(q->pos0 + q->n_rows - v->wide_pos0) : 0;
    v->wide = pack_ints(p, v->wide, pages, pages, 0);
    if (v->narrow == NULL)
        return;
    void *table_device;
    const int32_t **table =
        (const int32_t **)pack(p, (size_t)n_kv_heads * sizeof *table, &table_device);
    for (int h = 0; h < n_kv_heads; h++) {
        int n = (v->n_narrow[h] + narrow_slots - 1) / narrow_slots;
        const int32_t *at = pack_ints(p, v->narrow[h], n, n, 0);
        if (table != NULL)
            table[h] = at;
    }
    v->n_narrow = pack_ints(p, v->n_narrow, n_kv_heads, n_kv_heads, 0);
    v->narrow = (const int32_t *const *)table_device;
}

static void pack_seqs(struct packer *p, const struct be_step *s, const struct be_step *to,
                      struct be_seq *dst)
{
    for (int l = 0; l < s->n_layers; l++)
        for (int i = 0; i < s->n_seqs; i++) {
            struct be_seq q = s->seqs[(size_t)l * (size_t)s->n_seqs + (size_t)i];
            pack_view(p, &q, s->n_kv_heads, kv_narrow_slots(s->narrow_type));
            if (dst != NULL)
                dst[(size_t)l * (size_t)to->n_seqs + (size_t)i] = q;
        }
}

static const int32_t *pack_row_seq(struct packer *p, const struct be_step *s, int n_room)
{
    const int32_t *at = pack_ints(p, NULL, 0, n_room, -1);
    if (p->base == NULL)
        return at;
    int32_t *row = (int32_t *)(p->base + ((const char *)at - p->device));
    for (int i = 0; i < s->n_seqs; i++)
        for (int r = 0; r < s->seqs[i].n_rows; r++)
            row[s->seqs[i].row0 + r] = i;
    return at;
}

/* The rows that were added keep nothing. */
static const struct be_keep *pack_keep(struct packer *p, const struct be_step *s, int n_room)
{
    void *device;
    size_t layers = (size_t)s->n_layers;
    if (s->keep == NULL)
        return NULL;
    struct be_keep *dst = (struct be_keep *)pack(p, layers * (size_t)n_room * sizeof *dst, &device);
    for (size_t l = 0; dst != NULL && l < layers; l++)
        for (int r = 0; r < n_room; r++)
            *dst++ =
                r < s->n_rows ? s->keep[l * (size_t)s->n_rows + (size_t)r] : be_keep{ NULL, NULL };
    return (const struct be_keep *)device;
}

/* What attention takes in one launch: the sequences of more than one row, or the others. */
static void pack_spans(struct packer *p, const struct be_step *s, bool many, struct cu_seqs *to)
{
    void *seq_device, *span_device;
    struct cu_span *seq = (struct cu_span *)pack(p, (size_t)to->n * sizeof *seq, &seq_device);
    struct cu_span *span =
        (struct cu_span *)pack(p, (size_t)to->n_spans * sizeof *span, &span_device);
    to->seq = (const struct cu_span *)seq_device;
    to->span = (const struct cu_span *)span_device;
    if (seq == NULL)
        return;
    int n = 0, n_spans = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        if ((s->seqs[i].n_rows > 1) != many)
            continue;
        seq[n++] = cu_span{ i, n_spans };
        for (int k = 0, own = seq_spans(s, i); k < own; k++)
            span[n_spans++] = cu_span{ i, k };
    }
    for (int i = s->n_seqs; n < to->n; i++)
        seq[n++] = cu_span{ i, n_spans }; /* without rows */
    while (n_spans < to->n_spans)
        span[n_spans++] = cu_span{ -1, 0 };
}

/* Packs *s with the counts of *to and *m and leaves device addresses there. */
static void pack_step(struct packer *p, const struct be_step *s, struct be_step *to,
                      struct cu_step *m)
{
    void *seqs_device;
    size_t seqs_bytes = (size_t)to->n_layers * (size_t)to->n_seqs * sizeof(struct be_seq);
    to->token = pack_ints(p, s->token, s->n_rows, to->n_rows, 0);
    to->pos = pack_ints(p, s->pos, s->n_rows, to->n_rows, 0);
    m->row_seq = pack_row_seq(p, s, to->n_rows);
    to->out_row = pack_ints(p, s->out_row, s->n_out, to->n_out, 0);
    to->keep = pack_keep(p, s, to->n_rows);
    struct be_seq *seqs = (struct be_seq *)pack(p, seqs_bytes, &seqs_device);
    if (seqs != NULL)
        memset(seqs, 0, seqs_bytes);
    to->seqs = (const struct be_seq *)seqs_device;
    pack_spans(p, s, false, &m->single);
    pack_spans(p, s, true, &m->many);
    pack_seqs(p, s, to, seqs);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* One tensor-core tile has eight columns: up to there powers of two, then whole tiles. */
static int bucket(int n)
{
    int up = 1;
    if (n > 8)
        return (n + 7) / 8 * 8;
    while (up < n)
        up *= 2;
    return up;
}

static int power_up(int n)
{
    int up = 1;
    while (up < n)
        up *= 2;
    return n > 0 ? up : 0;
}

static bool is_decode(const struct be_step *s)
{
    for (int i = 0; i < s->n_seqs; i++)
        if (s->seqs[i].n_rows != 1)
            return false;
    return s->n_out == s->n_rows && s->n_rows == s->n_seqs;
}

static void measure(const struct be_step *s, struct cu_step *m)
{
    *m = cu_step();
    for (int i = 0; i < s->n_seqs; i++) {
        int rows = s->seqs[i].n_rows, spans = seq_spans(s, i);
        struct cu_seqs *of = rows > 1 ? &m->many : &m->single;
        of->n++;
        of->max_rows = rows > of->max_rows ? rows : of->max_rows;
        of->max_spans = spans > of->max_spans ? spans : of->max_spans;
        of->n_spans += spans;
    }
}

/* ---- the block --------------------------------------------------------------------------------------------------- */

static void free_block(struct cu_graphs *g)
{
    cudaFree(g->block);
    if (g->staged != NULL)
        cudaFreeHost(g->staged);
    g->block = g->staged = NULL;
    g->room = 0;
}

static bool grow_block(struct cu_state *s, size_t bytes)
{
    struct cu_graphs *g = s->graphs;
    void *block = NULL, *staged = NULL;
    if (bytes <= g->room)
        return true;
    size_t room = (((bytes + bytes / 4) >> 20) + 1) << 20; /* the engine leaves that much */
    cu_graphs_drop(s);
    free_block(g);
    bool ok = CU_CHECK(s, cudaMalloc(&block, room)) && CU_CHECK(s, cudaMallocHost(&staged, room));
    g->block = (char *)block;
    g->staged = (char *)staged;
    g->room = ok ? room : 0;
    return ok;
}

/* ---- recorded passes --------------------------------------------------------------------------------------------- */

void cu_graphs_drop(struct cu_state *s)
{
    struct cu_graphs *g = s->graphs;
    for (int i = 0; g != NULL && i < g->n; i++)
        if (g->list[i].exec != NULL)
            cudaGraphExecDestroy(g->list[i].exec);
    if (g != NULL)
        g->n = 0;
}

bool cu_graphs_open(struct cu_state *s)
{
    s->graphs = (struct cu_graphs *)mem_zalloc(1, sizeof *s->graphs);
    return s->graphs != NULL && grow_block(s, 1);
}

void cu_graphs_close(struct be *be)
{
    struct cu_state *s = cu_of(be);
    if (s->graphs == NULL)
        return;
    cu_graphs_drop(s);
    free_block(s->graphs);
    mem_free(s->graphs);
    s->graphs = NULL;
}

static struct recorded *find(struct cu_graphs *g, const struct shape *shape)
{
    for (int i = 0; i < g->n; i++)
        if (memcmp(&g->list[i].shape, shape, sizeof *shape) == 0)
            return &g->list[i];
    return NULL;
}

/* The place of a new shape: when all are taken, of one that was seen once, else of the one not asked for longest. Nothing
 * of it is running: the stream was waited for when the step began. */
static struct recorded *place(struct cu_graphs *g)
{
    if (g->n < MAX_GRAPHS)
        return &g->list[g->n++];
    struct recorded *old = &g->list[0];
    for (int i = 1; i < g->n; i++) {
        struct recorded *r = &g->list[i];
        bool worse =
            (r->exec == NULL) == (old->exec == NULL) ? r->used < old->used : r->exec == NULL;
        old = worse ? r : old;
    }
    if (old->exec != NULL)
        cudaGraphExecDestroy(old->exec);
    return old;
}

/* Replays the pass when it was recorded; else starts recording it when it was seen before. */
static bool replay(struct cu_state *s, const struct be_step *step, const void *owner)
{
    struct cu_graphs *g = s->graphs;
    struct shape now;
    memset(&now, 0, sizeof now);
    now.owner = owner;
    now.block = g->block;
    now.n_rows = step->n_rows;
    now.n_seqs = step->n_seqs;
    now.n_out = step->n_out;
    now.n_layers = step->n_layers;
    now.max_spans = s->step.single.max_spans;
    now.n_spans = s->step.single.n_spans;
    now.has_keep = step->keep != NULL;
    struct recorded *known = find(g, &now);
    g->steps++;
    if (known == NULL) {
        known = place(g);
        known->shape = now;
        known->exec = NULL;
        known->used = g->steps;
        return false;
    }
    known->used = g->steps;
    if (known->exec != NULL) {
        CU_CHECK(s, cudaGraphLaunch(known->exec, s->stream));
        return true;
    }
    if (CU_CHECK(s, cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal)))
        g->recording = known;
    return false;
}

static bool cuda_step_begin(struct be *be, struct be_step *step, const void *owner)
{
    struct cu_state *s = cu_of(be);
    struct be_step host = *step;
    bool decode = owner != NULL && is_decode(&host);
    if (!cu_on_device(s))
        return true; /* nothing runs on a lost device; sync() says so */
    measure(&host, &s->step);
    if (decode) {
        step->n_rows = step->n_seqs = step->n_out = bucket(host.n_rows);
        s->step.single.n = step->n_seqs;
        s->step.single.max_spans = power_up(s->step.single.max_spans);
        s->step.single.n_spans = power_up(s->step.single.n_spans);
    }
    s->step.n_rows = step->n_rows;
    struct packer p = { NULL, NULL, 0 };
    pack_step(&p, &host, step, &s->step);
    /* The last step's copy may still read the staging block. */
    if (!CU_CHECK(s, cudaStreamSynchronize(s->stream)) || !grow_block(s, p.used))
        return true;
    p = packer{ s->graphs->staged, s->graphs->block, 0 };
    pack_step(&p, &host, step, &s->step);
    CU_CHECK(s, cudaMemcpyAsync(s->graphs->block, s->graphs->staged, p.used, cudaMemcpyHostToDevice,
                                s->stream));
    return !cu_ok(s) || (decode && replay(s, step, owner));
}

/* Runs what was recorded, too. A device that has no memory for one pass more has that of the others. */
static void keep_pass(struct cu_state *s, struct recorded *pass, cudaGraph_t graph)
{
    struct shape shape = pass->shape;
    cudaError_t rc = cudaGraphInstantiate(&pass->exec, graph, 0);
    if (rc == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* it is not the launch's */
        pass->exec = NULL;
        cu_graphs_drop(s);
        pass = place(s->graphs);
        *pass = recorded{ shape, NULL, s->graphs->steps };
        rc = cudaGraphInstantiate(&pass->exec, graph, 0);
    }
    if (CU_CHECK(s, rc))
        CU_CHECK(s, cudaGraphLaunch(pass->exec, s->stream));
}

static void cuda_step_end(struct be *be)
{
    struct cu_state *s = cu_of(be);
    struct recorded *pass = s->graphs->recording;
    cudaGraph_t graph = NULL;
    if (pass == NULL)
        return;
    s->graphs->recording = NULL;
    if (!CU_CHECK(s, cudaStreamEndCapture(s->stream, &graph)))
        return;
    if (cu_ok(s))
        keep_pass(s, pass, graph);
    cudaGraphDestroy(graph);
}

void cu_ops_step(struct be_ops *ops)
{
    ops->step_begin = cuda_step_begin;
    ops->step_end = cuda_step_end;
}
